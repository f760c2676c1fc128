"""Many threads or tasks at once, for as long as one likes."""
