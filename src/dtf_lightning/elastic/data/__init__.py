"""Which samples a rank trains in which step: samplers, shards, streams, and the plan of each step."""
