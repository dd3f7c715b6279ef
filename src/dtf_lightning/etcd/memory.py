"""`MemoryStore`: the `Store` protocol without a server, for many agents in one process and for faults on demand.

One `MemoryBackend` is the cluster, each `MemoryStore` a client of it. Nothing happens by itself: time is the injected
clock's, and leases expire when `MemoryBackend.expire` is called. The contract suite holds this file to what etcd does.

Rules:
- A transaction that writes has one revision for all its writes; one that does not has the current revision.
- A lease of a client that is open and reachable is renewed by `expire`; any other expires at its deadline.
- While the backend or a client is cut off its calls raise, its watches stand still, and nothing is lost.
"""

# ruff: noqa: ARG002  (the protocol gives every call a timeout, and nothing here waits)

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.errors import LeaseLost, OutcomeUnknown, StoreError, StoreUnavailable, WatchCompacted
from dtf_lightning.etcd.store import (
    Compare,
    Delete,
    EventKind,
    Get,
    KeyValue,
    Put,
    RangeResult,
    TxnResult,
    WatchEvent,
)

MAX_OPERATIONS = 128
"""Per transaction, as etcd's default."""


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
        self._clients: list[MemoryStore] = []

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

    def register(self, client: MemoryStore) -> None:
        self._clients.append(client)

    def forget(self, client: MemoryStore) -> None:
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


class MemoryStore:
    """One client. `reachable = False` cuts it off alone; `vanish()` is its process killed with -9."""

    def __init__(self, backend: MemoryBackend | None = None) -> None:
        self.backend = backend or MemoryBackend()
        self.leases: list[MemoryLease] = []
        self.closed = False
        self._reachable = True
        self._lost_answers: list[bool] = []
        with self.backend.changed:
            self.backend.register(self)

    def __enter__(self) -> MemoryStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- faults ------------------------------------------------------------------------------------------------------

    @property
    def reachable(self) -> bool:
        """Whether this client and the backend can talk."""
        return self._reachable and self.backend.available

    @reachable.setter
    def reachable(self, reachable: bool) -> None:
        with self.backend.changed:
            self._reachable = reachable
            self.backend.changed.notify_all()

    def lose_answer(self, *, applied: bool) -> None:
        """The next transaction that writes raises `OutcomeUnknown`, having been applied or not."""
        self._lost_answers.append(applied)

    def vanish(self) -> None:
        """Stop at once, as a killed process: leases stay until they expire."""
        self.close()

    # --- the protocol ------------------------------------------------------------------------------------------------

    def get(self, key: str, *, timeout: float | None = None) -> KeyValue | None:
        with self.backend.changed:
            self._check(f"get {key!r}", key)
            return next(iter(self.backend.find(key)), None)

    def range(self, prefix: str, *, timeout: float | None = None) -> RangeResult:
        with self.backend.changed:
            self._check(f"range {prefix!r}")
            return RangeResult(self.backend.revision, self.backend.find(prefix, prefix=True))

    def put(self, key: str, value: bytes, *, lease: int = 0, timeout: float | None = None) -> int:
        with self.backend.changed:
            self._check(f"put {key!r}", key)
            self.backend.check_lease(lease)
            return self.backend.apply([Put(key, value, lease)])[0]

    def delete(self, key: str, *, prefix: bool = False, timeout: float | None = None) -> int:
        with self.backend.changed:
            self._check(f"delete {key!r}", None if prefix else key)
            return self.backend.apply([Delete(key, prefix)])[2]

    def txn(
        self,
        compares: Iterable[Compare],
        then: Sequence[Put | Delete | Get],
        otherwise: Sequence[Put | Delete | Get] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        compares = list(compares)
        with self.backend.changed:
            self._check("transaction", *(compare.key for compare in compares))
            writes = any(not isinstance(operation, Get) for operation in (*then, *otherwise))
            lost = self._lost_answers.pop(0) if writes and self._lost_answers else None
            if lost is not False:
                result = self._transact(compares, then, otherwise)
            if lost is not None:
                raise OutcomeUnknown("transaction: sent, but its answer was lost (injected)")
            return result

    def watch(self, prefix: str, *, start_revision: int = 0) -> MemoryWatch:
        with self.backend.changed:
            if not start_revision:
                self._check(f"watch {prefix!r}")
            return MemoryWatch(self, prefix, start_revision or self.backend.revision + 1)

    def lease(self, ttl: float, *, on_lost: Callable[[], None] | None = None) -> MemoryLease:
        with self.backend.changed:
            self._check(f"lease of {ttl:g} s")
            granted = float(math.ceil(ttl))
            lease = MemoryLease(self, self.backend.grant(granted), granted, on_lost)
            self.leases.append(lease)
            return lease

    def close(self) -> None:
        with self.backend.changed:
            if self.closed:
                return
            self.closed = True
            self.backend.forget(self)
            self.leases.clear()
            self.backend.changed.notify_all()

    def _transact(
        self,
        compares: Sequence[Compare],
        then: Sequence[Put | Delete | Get],
        otherwise: Sequence[Put | Delete | Get],
    ) -> TxnResult:
        # etcd checks both branches before it looks at the compares.
        for branch in (then, otherwise):
            _check_branch(branch)
        succeeded = all(self.backend.holds(compare) for compare in compares)
        branch = then if succeeded else otherwise
        for operation in branch:
            if isinstance(operation, Put):
                self.backend.check_lease(operation.lease)
        revision, gets, _ = self.backend.apply(branch)
        return TxnResult(succeeded, revision, gets)

    def _check(self, what: str, *keys: str | None) -> None:
        if self.closed:
            raise StoreError(f"{what}: the connection to etcd was closed by this process")
        if not self.reachable:
            raise StoreUnavailable(f"{what}: no answer from etcd (outage injected)")
        if "" in keys:
            raise StoreError(f"{what}: etcdserver: key is not provided")


class MemoryWatch:
    """Implements `Watch` by reading the backend's history from where it stands."""

    def __init__(self, store: MemoryStore, prefix: str, start_revision: int) -> None:
        self._store = store
        self._prefix = prefix
        self._next_revision = start_revision
        self._cancelled = False

    def get(self, timeout: float | None = None) -> tuple[WatchEvent, ...] | None:
        changed = self._store.backend.changed
        # A consumer's patience is real time, whatever clock the leases run on.
        deadline = None if timeout is None else time.monotonic() + timeout
        with changed:
            while True:
                if self._cancelled:
                    return None
                if self._store.closed:
                    raise StoreError("the connection to etcd was closed by this process")
                if self._store.reachable:
                    batches = self._store.backend.batches(self._prefix, self._next_revision)
                    if batches:
                        self._next_revision = batches[0][-1].kv.mod_revision + 1
                        return batches[0]
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return ()
                changed.wait(left)

    def cancel(self) -> None:
        with self._store.backend.changed:
            self._cancelled = True
            self._store.backend.changed.notify_all()


class MemoryLease:
    """Implements `Lease`; `MemoryBackend.expire` does what a thread does for a real one."""

    def __init__(self, store: MemoryStore, lease_id: int, ttl: float, on_lost: Callable[[], None] | None) -> None:
        self._store = store
        self._id = lease_id
        self._ttl = ttl
        self._expires = store.backend.clock.monotonic() + ttl
        self._on_lost = on_lost
        self._lost = False

    @property
    def id(self) -> int:
        return self._id

    @property
    def ttl(self) -> float:
        return self._ttl

    @property
    def lost(self) -> bool:
        return self._lost

    def revoke(self) -> None:
        with self._store.backend.changed:
            self.abandon()
            if self._store.reachable and not self._store.closed:
                self._store.backend.drop_lease(self._id)

    def abandon(self) -> None:
        with self._store.backend.changed:
            if self in self._store.leases:
                self._store.leases.remove(self)

    def renewed(self, now: float) -> bool:
        """Whether it is still held after a try to renew it."""
        if self._store.reachable:
            if not self._store.backend.renew(self._id, now):
                return False
            self._expires = now + self._ttl
        return now < self._expires

    def lose(self) -> None:
        """Called without the backend's lock: the owner will use the store."""
        self.abandon()
        self._lost = True
        if self._on_lost is not None:
            self._on_lost()


def _ordered(actual: int | bytes, op: str, operand: int | bytes) -> bool:
    if op in ("=", "!="):
        return (actual == operand) is (op == "=")
    assert type(actual) is type(operand)
    return (actual < operand) if op == "<" else (actual > operand)  # type: ignore[operator]  # of one type, as asserted


def _check_branch(operations: Sequence[Put | Delete | Get]) -> None:
    if len(operations) > MAX_OPERATIONS:
        raise StoreError("transaction: etcdserver: too many operations in txn request")
    if any(not operation.key and not getattr(operation, "prefix", False) for operation in operations):
        raise StoreError("transaction: etcdserver: key is not provided")
    puts = [operation.key for operation in operations if isinstance(operation, Put)]
    deletes = [operation for operation in operations if isinstance(operation, Delete)]
    overlap = any(key == d.key or (d.prefix and key.startswith(d.key)) for key in puts for d in deletes)
    if overlap or len(set(puts)) < len(puts):
        raise StoreError("transaction: etcdserver: duplicate key given in txn request")
