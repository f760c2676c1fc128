"""One AsyncSession for many tasks."""
