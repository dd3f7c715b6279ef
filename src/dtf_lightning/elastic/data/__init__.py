"""Decides which samples each rank trains in each step: samplers, shards, streams, and the plans of steps."""
