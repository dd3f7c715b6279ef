"""A worker's process: its connection to a coordinator, and what is done with what comes over it."""
