"""Every schedule of small programs, for threads and for tasks."""
