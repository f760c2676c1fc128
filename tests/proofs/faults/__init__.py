"""Interrupts, finalizers and failures, at any step."""
