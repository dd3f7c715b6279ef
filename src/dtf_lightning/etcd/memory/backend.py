"""The server behind `MemoryStore`s: keys with their history, leases, and faults on demand.

Rules:
- A transaction that writes has one revision for all its writes; one that does not has the current revision.
- A lease of a client that is open and reachable is renewed by `expire`; any other expires at its deadline.
- Whoever touches anything holds `changed`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.errors import LeaseLost, WatchCompacted
from dtf_lightning.etcd.store import Compare, Delete, EventKind, Get, KeyValue, Put, WatchEvent


class BackendLease(Protocol):
    """A client's lease, as the backend sees it."""

    def renewed(self, now: float) -> bool:
        """Whether it is still held after a try to renew it."""
        ...

    def lose(self) -> None:
        """It is gone. Called without the backend's lock: the owner will use the store."""
        ...


class BackendClient(Protocol):
    """A client, as the backend sees it."""

    @property
    def leases(self) -> Sequence[BackendLease]: ...


@dataclass(slots=True)
class _LeaseRecord:
    ttl: float
    deadline: float
    keys: set[str] = field(default_factory=set)


class MemoryBackend:
    """The keys, their history and the leases."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.changed = threading.Condition(threading.RLock())
        """Guards everything; notified of every event, cut and end of a watch."""
        self.revision = 1
        self.compacted = 0
        self._available = True
        self._kvs: dict[str, KeyValue] = {}
        self._history: list[tuple[WatchEvent, ...]] = []
        """One batch per revision, oldest first."""
        self._leases: dict[int, _LeaseRecord] = {}
        self._last_lease = 0
        self._clients: list[BackendClient] = []

    # --- faults and time ---------------------------------------------------------------------------------------------

    @property
    def available(self) -> bool:
        return self._available

    @available.setter
    def available(self, available: bool) -> None:
        """`False`: an outage for all clients. The server's clocks for leases stand still and start anew after it."""
        with self.changed:
            if available and not self._available:
                now = self.clock.monotonic()
                for record in self._leases.values():
                    record.deadline = now + record.ttl
            self._available = available
            self.changed.notify_all()

    def expire(self) -> None:
        """Let the clock's time count: renew what is kept alive, drop what is not, tell the owners."""
        with self.changed:
            now = self.clock.monotonic()
            lost = [lease for client in self._clients for lease in client.leases if not lease.renewed(now)]
            if self._available:
                for lease_id in [i for i, record in self._leases.items() if record.deadline <= now]:
                    self.drop_lease(lease_id)
        for lease in lost:
            lease.lose()

    def compact(self, revision: int) -> None:
        """Forget the events before `revision`."""
        with self.changed:
            assert self.compacted < revision <= self.revision, (self.compacted, revision, self.revision)
            self.compacted = revision
            self._history = [batch for batch in self._history if batch[-1].kv.mod_revision >= revision]

    # --- for the clients, who hold `changed` -------------------------------------------------------------------------

    def register(self, client: BackendClient) -> None:
        self._clients.append(client)

    def forget(self, client: BackendClient) -> None:
        self._clients.remove(client)

    def find(self, key: str, prefix: bool = False) -> tuple[KeyValue, ...]:
        if not prefix:
            return (self._kvs[key],) if key in self._kvs else ()
        # etcd orders by bytes, which for UTF-8 is the order of code points, as str has it.
        return tuple(self._kvs[name] for name in sorted(self._kvs) if name.startswith(key))

    def holds(self, compare: Compare) -> bool:
        kv = self._kvs.get(compare.key)
        if compare.target == "value":
            if kv is None:  # etcd: no compare on the value of a missing key holds, "!=" neither
                return False
            assert isinstance(compare.operand, bytes)
            return _ordered(kv.value, compare.op, compare.operand)
        assert isinstance(compare.operand, int)
        actual = 0
        if kv is not None:
            actual = {
                "create": kv.create_revision,
                "mod": kv.mod_revision,
                "version": kv.version,
                "lease": kv.lease,
            }[compare.target]
        return _ordered(actual, compare.op, compare.operand)

    def apply(self, operations: Sequence[Put | Delete | Get]) -> tuple[int, tuple[tuple[KeyValue, ...], ...], int]:
        """All of them at one revision: that revision, what the gets saw, how many keys were deleted."""
        revision = self.revision + 1
        events: list[WatchEvent] = []
        gets: list[tuple[KeyValue, ...]] = []
        for operation in operations:
            match operation:
                case Put():
                    events.append(WatchEvent(EventKind.PUT, self._put(operation, revision)))
                case Delete(key, prefix):
                    events.extend(self._delete(kv.key, revision) for kv in self.find(key, prefix))
                case Get(key, prefix):
                    gets.append(self.find(key, prefix))
        self._publish(events)
        num_deleted = sum(event.kind is EventKind.DELETE for event in events)
        return self.revision, tuple(gets), num_deleted

    def check_lease(self, lease: int) -> None:
        if lease and lease not in self._leases:
            raise LeaseLost(f"etcd: requested lease {lease:x} not found; it has expired or was revoked")

    def grant(self, ttl: float) -> int:
        self._last_lease += 1
        self._leases[self._last_lease] = _LeaseRecord(ttl, self.clock.monotonic() + ttl)
        return self._last_lease

    def renew(self, lease: int, now: float) -> bool:
        """Whether there still is such a lease."""
        record = self._leases.get(lease)
        if record is not None:
            record.deadline = now + record.ttl
        return record is not None

    def drop_lease(self, lease: int) -> None:
        record = self._leases.pop(lease, None)
        if record is not None:
            revision = self.revision + 1
            self._publish([self._delete(key, revision) for key in sorted(record.keys)])

    def batches(self, prefix: str, start_revision: int) -> list[tuple[WatchEvent, ...]]:
        """Raises `WatchCompacted`."""
        if start_revision < self.compacted:
            raise WatchCompacted(self.compacted)
        found = []
        for batch in reversed(self._history):
            if batch[-1].kv.mod_revision < start_revision:
                break
            if events := tuple(event for event in batch if event.kv.key.startswith(prefix)):
                found.append(events)
        return found[::-1]

    def _put(self, put: Put, revision: int) -> KeyValue:
        old = self._kvs.get(put.key)
        if old is None:
            new = KeyValue(put.key, put.value, revision, revision, 1, put.lease)
        else:
            self._detach(old)
            new = replace(old, value=put.value, mod_revision=revision, version=old.version + 1, lease=put.lease)
        if put.lease:
            self._leases[put.lease].keys.add(put.key)
        self._kvs[put.key] = new
        return new

    def _delete(self, key: str, revision: int) -> WatchEvent:
        self._detach(self._kvs.pop(key))
        return WatchEvent(EventKind.DELETE, KeyValue(key, b"", 0, revision, 0))

    def _detach(self, kv: KeyValue) -> None:
        if kv.lease in self._leases:
            self._leases[kv.lease].keys.discard(kv.key)

    def _publish(self, events: list[WatchEvent]) -> None:
        if events:
            self.revision += 1
            self._history.append(tuple(events))
            self.changed.notify_all()


def _ordered(actual: int | bytes, op: str, operand: int | bytes) -> bool:
    if op in ("=", "!="):
        return (actual == operand) is (op == "=")
    assert type(actual) is type(operand)
    return (actual < operand) if op == "<" else (actual > operand)  # type: ignore[operator]  # of one type, as asserted
