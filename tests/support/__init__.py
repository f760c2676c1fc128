"""What tests share: threads that can be watched, tasks, models, databases."""
