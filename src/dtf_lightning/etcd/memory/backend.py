"""`MemoryBackend` is the server behind `MemoryStore`s: keys with their history, leases, and faults on demand.

Rules:
- A transaction that writes has one revision for all its writes; one that does not has the current revision.
- A lease of a client that is open and reachable is renewed by `expire`; any other expires at its deadline.
- Sizes are the bytes of keys and values that are kept, the history's too; a file only shrinks by defragmenting.
- Whoever touches anything holds `changed`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.errors import LeaseLost, RevisionCompacted, StoreError, StoreFull, WatchCompacted
from dtf_lightning.etcd.store import Compare, Delete, EventKind, Get, KeyValue, Put, WatchEvent


class BackendLease(Protocol):
    """A client's lease, as the backend sees it."""

    def renewed(self, now: float) -> bool:
        """Try to renew the lease; return whether it is still held."""
        ...

    def lose(self) -> None:
        """Take in that the lease is gone. Called without the backend's lock, because the owner will use the store."""
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
    """The keys, their history and the leases. `quota`: the bytes of keys and values at which it takes no more."""

    def __init__(self, clock: Clock | None = None, *, quota: int | None = None) -> None:
        self.clock = clock or SystemClock()
        self.changed = threading.Condition(threading.RLock())
        """The condition that guards everything; it is notified of every event, cut and end of a watch."""
        self.revision = 1
        self.compacted = 0
        self.quota = quota
        self.out_of_space = False
        """Whether the alarm for the quota is on; switching it off sets this to `False`."""
        self._file_size = 0
        self._available = True
        self._kvs: dict[str, KeyValue] = {}
        self._history: list[tuple[WatchEvent, ...]] = []
        """The events, one batch per revision, oldest first."""
        self._replaced: dict[tuple[str, int], KeyValue] = {}
        """The values that keys held before the event of a revision, if they held any."""
        self._leases: dict[int, _LeaseRecord] = {}
        self._last_lease = 0
        self._clients: list[BackendClient] = []

    # --- faults and time ---------------------------------------------------------------------------------------------

    @property
    def available(self) -> bool:
        return self._available

    @available.setter
    def available(self, available: bool) -> None:
        """Whether the server answers. `False`: an outage for all, with the leases' clocks starting anew after it."""
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
        """Forget the history before `revision`. Raises `StoreError` for a revision to come."""
        with self.changed:
            if revision > self.revision:
                raise StoreError("compacting: etcdserver: mvcc: required revision is a future revision")
            if revision <= self.compacted:
                return
            self.measure()
            self.compacted = revision
            self._history = [batch for batch in self._history if batch[-1].kv.mod_revision >= revision]
            self._replaced = {at: kv for at, kv in self._replaced.items() if at[1] > revision}

    # --- sizes, for who holds `changed` ------------------------------------------------------------------------------

    def in_use(self) -> int:
        """The bytes of the keys and values that are kept."""
        kept = {(kv.key, kv.mod_revision): kv for kv in (*self._kvs.values(), *self._replaced.values())}
        return sum(map(_size, kept.values()))

    def measure(self) -> int:
        """Return the bytes of the file: the most that it has had to hold since it was written anew."""
        self._file_size = max(self._file_size, self.in_use())
        return self._file_size

    def defragment(self) -> None:
        self._file_size = self.in_use()

    def check_space(self, size: int) -> None:
        """Check that `size` bytes more may be written; 0 for reads and deletes. Raises `StoreFull`."""
        if size and self.quota is not None:
            self.out_of_space = self.out_of_space or self.measure() + size >= self.quota
        if size and self.out_of_space:
            raise StoreFull("etcdserver: mvcc: database space exceeded")

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

    def find_at(self, prefix: str, revision: int) -> tuple[KeyValue, ...]:
        """Return keys as of a revision. Raises `RevisionCompacted`, and `StoreError` for a revision to come."""
        if revision > self.revision:
            raise StoreError(f"range {prefix!r}: etcdserver: mvcc: required revision is a future revision")
        if revision < self.compacted:
            raise RevisionCompacted(f"range {prefix!r}: etcdserver: mvcc: required revision has been compacted")
        kvs = {kv.key: kv for kv in self.find(prefix, prefix=True)}
        for event in (event for batch in reversed(self._history) for event in reversed(batch)):
            key, changed = event.kv.key, event.kv.mod_revision
            if changed > revision and key.startswith(prefix):
                before = self._replaced.get((key, changed))
                kvs.pop(key, None)
                if before is not None:
                    kvs[key] = before
        return tuple(kvs[key] for key in sorted(kvs))

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
        """Apply operations at one revision; return that revision, what the gets saw, and how many keys were deleted."""
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
        """Renew a lease; return whether it still exists."""
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
        """Return the batches of events of a watch. Raises `WatchCompacted`."""
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
        self._remember(old, revision)
        return new

    def _delete(self, key: str, revision: int) -> WatchEvent:
        old = self._kvs.pop(key)
        self._detach(old)
        self._remember(old, revision)
        return WatchEvent(EventKind.DELETE, KeyValue(key, b"", 0, revision, 0))

    def _remember(self, old: KeyValue | None, revision: int) -> None:
        """Keep what a key held before a revision; of a key that is written twice in it, the first counts."""
        if old is not None and old.mod_revision < revision:
            self._replaced[old.key, revision] = old

    def _detach(self, kv: KeyValue) -> None:
        if kv.lease in self._leases:
            self._leases[kv.lease].keys.discard(kv.key)

    def _publish(self, events: list[WatchEvent]) -> None:
        if events:
            self.revision += 1
            self._history.append(tuple(events))
            self.changed.notify_all()


def _size(kv: KeyValue) -> int:
    return len(kv.key.encode()) + len(kv.value)


def _ordered(actual: int | bytes, op: str, operand: int | bytes) -> bool:
    if op in ("=", "!="):
        return (actual == operand) is (op == "=")
    assert type(actual) is type(operand)
    return (actual < operand) if op == "<" else (actual > operand)  # type: ignore[operator]  # of one type, as asserted
