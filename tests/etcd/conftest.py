from __future__ import annotations

from support.etcd_cluster import etcd, etcd_cluster, prefix, shared_cluster, store

__all__ = ["etcd", "etcd_cluster", "prefix", "shared_cluster", "store"]
