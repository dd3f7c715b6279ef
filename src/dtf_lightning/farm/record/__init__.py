"""What a farm remembers: its keys in etcd, their versioned values, guarded writes in batches, and a copy fed by a watch."""
