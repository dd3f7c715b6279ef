"""What a worker reports of its training: events, logger scalars, progress bars, the pace of the ranks."""
