"""The in-memory twin of an etcd cluster, for tests; one contract suite holds both to the same behaviour."""
