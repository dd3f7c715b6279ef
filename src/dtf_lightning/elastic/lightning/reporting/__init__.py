"""Reports of a worker's training: events, logger scalars, progress bars, the pace of the ranks. Internal."""
