"""Attached objects: attributes, collections, pickling."""
