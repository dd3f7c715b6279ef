"""Event logs: a registry of a product's kinds of events, an append-only file per process, a reader that follows it."""
