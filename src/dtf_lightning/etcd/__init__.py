"""The etcd v3 layer: a `Store` protocol, real etcd and an in-memory twin behind it, and a server for one machine.

Names are loaded on first use, and grpc only when `connect` is called: every process that torch starts imports this.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dtf_lightning.etcd.connection import connect
    from dtf_lightning.etcd.election import Election, Leadership
    from dtf_lightning.etcd.etcd_store import EtcdStore
    from dtf_lightning.etcd.memory.backend import MemoryBackend
    from dtf_lightning.etcd.memory.store import MemoryStore
    from dtf_lightning.etcd.server.embedded import EmbeddedEtcd

__all__ = ["Election", "EmbeddedEtcd", "EtcdStore", "Leadership", "MemoryBackend", "MemoryStore", "connect"]

_HOMES = {
    "Election": "election",
    "EmbeddedEtcd": "server.embedded",
    "EtcdStore": "etcd_store",
    "Leadership": "election",
    "MemoryBackend": "memory.backend",
    "MemoryStore": "memory.store",
    "connect": "connection",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
