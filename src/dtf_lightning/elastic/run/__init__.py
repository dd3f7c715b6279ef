"""A run's keys in etcd, and its state as an operator sees it."""
