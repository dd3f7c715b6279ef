"""What a command line shows of a task while it runs, and what it gives it to read."""
