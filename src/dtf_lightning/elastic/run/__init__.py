"""The keys of a run in etcd, and the state of a run as an operator sees it."""
