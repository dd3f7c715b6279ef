"""What a worker runs for a shard."""
