"""Snapshots of the whole training state in a node's memory, for runs whose workers are started anew (restart mode)."""
