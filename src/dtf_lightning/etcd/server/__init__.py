"""An etcd server for one machine, started and ended by this package."""
