"""Proofs that do not stop at examples, a folder for each method."""
