"""The process that is the parent of a farm worker's attempts, and outlives the worker: it needs the standard library only."""
