"""The guard: owners, sections, windows, optimistic reads, holds that move."""
