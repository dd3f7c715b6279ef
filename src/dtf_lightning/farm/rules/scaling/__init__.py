"""How many workers a farm should have: what is seen of a pool, and what is to be started and drained. Pure."""
