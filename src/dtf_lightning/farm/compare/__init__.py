"""`dtf farm compare`: two programs are run in pairs until the statistics decide; their samples are kept for replays."""
