"""One etcd for the session."""

from support.etcd_cluster import etcd

__all__ = ["etcd"]
