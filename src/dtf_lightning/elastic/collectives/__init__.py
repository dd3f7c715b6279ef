"""Process groups that are formed and cut at every rescale, and what their members send each other."""
