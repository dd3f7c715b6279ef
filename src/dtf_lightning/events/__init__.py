"""The event log: an append-only file per process, the kinds of lines in it, and a reader that follows it."""
