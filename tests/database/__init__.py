"""Rows, results and connections, on three databases."""
