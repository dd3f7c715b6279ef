from __future__ import annotations

from support.etcd_cluster import etcd, store

__all__ = ["etcd", "store"]
