"""Bugs that are planted, and the tests that find them."""
