"""A farm in one file, and back into an empty etcd."""
