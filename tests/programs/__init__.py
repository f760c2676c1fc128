"""Frameworks, examples and notebooks, as they are."""
