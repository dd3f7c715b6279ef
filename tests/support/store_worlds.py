"""The worlds in which the contract tests run, and what they do with watches."""

from __future__ import annotations

from typing import Protocol

from dtf_lightning.etcd import connect
from dtf_lightning.etcd.memory.store import MemoryBackend, MemoryStore
from dtf_lightning.etcd.store import Lease, Store, Watch, WatchEvent
from support.etcd_cluster import etcdctl


class World(Protocol):
    """What the tests need beside the protocol itself."""

    def client(self) -> Store: ...
    def compact(self, revision: int) -> None: ...
    def revoke(self, lease: int) -> None:
        """By somebody else."""
        ...

    def pass_time(self, seconds: float) -> None:
        """Nothing where time passes by itself."""
        ...


class ManualClock:
    """Moves when told."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now


class MemoryWorld:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.backend = MemoryBackend(self.clock)

    def client(self) -> MemoryStore:
        return MemoryStore(self.backend)

    def compact(self, revision: int) -> None:
        self.backend.compact(revision)

    def revoke(self, lease: int) -> None:
        with self.backend.changed:
            self.backend.drop_lease(lease)
        self.backend.expire()

    def pass_time(self, seconds: float) -> None:
        # In small steps, as a renewing thread would live through it.
        for _ in range(10):
            self.clock.now += seconds / 10
            self.backend.expire()


class EtcdWorld:
    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint

    def client(self) -> Store:
        return connect(self.endpoint, quiet=True)

    def compact(self, revision: int) -> None:
        etcdctl(self.endpoint, "compaction", "--physical", str(revision))

    def revoke(self, lease: int) -> None:
        etcdctl(self.endpoint, "lease", "revoke", f"{lease:x}")

    def pass_time(self, seconds: float) -> None:
        """The watches of the tests wait for what has to come."""


def collect(watch: Watch, num_events: int, timeout: float = 60.0) -> list[WatchEvent]:
    """The next `num_events`; fails the test if they do not come."""
    events: list[WatchEvent] = []
    while len(events) < num_events:
        batch = watch.get(timeout)
        assert batch, f"{len(events)} of {num_events} events came"
        events.extend(batch)
    return events


def gone(world: World, watch: Watch, lease: Lease) -> WatchEvent:
    """The event of a key under an unrenewed lease; etcd gives it up to half a second more than its TTL."""
    world.pass_time(lease.ttl + 1.0)
    (event,) = collect(watch, 1, timeout=lease.ttl + 60.0)
    return event
