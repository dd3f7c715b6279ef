"""`MemoryStore`: the `Store` protocol without a server, for many agents in one process and for faults on demand.

One `MemoryBackend` is the cluster, each `MemoryStore` a client of it. Nothing happens by itself: time is the injected
clock's, and leases expire when `MemoryBackend.expire` is called. While the backend or a client is cut off its calls
raise, its watches stand still, and nothing is lost. The contract suite holds this file to what etcd does.
"""

# ruff: noqa: ARG002  (the protocol gives every call a timeout, and nothing here waits)

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence

from dtf_lightning.errors import OutcomeUnknown, StoreError, StoreUnavailable
from dtf_lightning.etcd.memory.backend import MemoryBackend
from dtf_lightning.etcd.memory.maintenance import MemoryMaintenance
from dtf_lightning.etcd.memory.transactions import check, choose
from dtf_lightning.etcd.store import (
    PAGE,
    Compare,
    Delete,
    KeyValue,
    Operation,
    Put,
    RangeResult,
    Txn,
    TxnResult,
    WatchEvent,
    writes,
)

__all__ = ["MemoryBackend", "MemoryLease", "MemoryStore", "MemoryWatch"]


class MemoryStore:
    """A client of a `MemoryBackend`. `reachable = False` cuts it off alone; `vanish()` is its process killed with -9."""

    def __init__(self, backend: MemoryBackend | None = None) -> None:
        self.backend = backend or MemoryBackend()
        self.maintenance = MemoryMaintenance(self.backend, self._check)
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
        """Let the next transaction that writes raise `OutcomeUnknown`, having been applied or not."""
        self._lost_answers.append(applied)

    def vanish(self) -> None:
        """Stop at once, like a killed process: leases stay until they expire."""
        self.close()

    # --- the protocol ------------------------------------------------------------------------------------------------

    def get(self, key: str, *, timeout: float | None = None) -> KeyValue | None:
        with self.backend.changed:
            self._check(f"get {key!r}", key)
            return next(iter(self.backend.find(key)), None)

    def range(
        self, prefix: str, *, revision: int = 0, page_size: int = PAGE, timeout: float | None = None
    ) -> RangeResult:
        with self.backend.changed:
            self._check(f"range {prefix!r}")
            revision = revision or self.backend.revision
            return RangeResult(revision, self.backend.find_at(prefix, revision))

    def count(self, prefix: str, *, timeout: float | None = None) -> int:
        with self.backend.changed:
            self._check(f"count {prefix!r}")
            return len(self.backend.find(prefix, prefix=True))

    def put(self, key: str, value: bytes, *, lease: int = 0, timeout: float | None = None) -> int:
        with self.backend.changed:
            self._check(f"put {key!r}", key)
            self.backend.check_space(_size([Put(key, value)]))
            self.backend.check_lease(lease)
            return self.backend.apply([Put(key, value, lease)])[0]

    def delete(self, key: str, *, prefix: bool = False, timeout: float | None = None) -> int:
        with self.backend.changed:
            self._check(f"delete {key!r}", None if prefix else key)
            return self.backend.apply([Delete(key, prefix)])[2]

    def txn(
        self,
        compares: Iterable[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        txn = Txn(tuple(compares), tuple(then), tuple(otherwise))
        with self.backend.changed:
            self._check("transaction", *(compare.key for compare in txn.compares))
            lost = self._lost_answers.pop(0) if writes(txn) and self._lost_answers else None
            if lost is not False:
                result = self._transact(txn)
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
            self.backend.check_space(1)
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

    def _transact(self, txn: Txn) -> TxnResult:
        check(txn)
        self.backend.check_space(max(_size(txn.then), _size(txn.otherwise)))
        chosen = choose(txn, self.backend.holds)
        operations = list(chosen.flat())
        for operation in operations:
            if isinstance(operation, Put):
                self.backend.check_lease(operation.lease)
        revision, gets, _ = self.backend.apply(operations)
        return chosen.result(revision, iter(gets))

    def _check(self, what: str, *keys: str | None) -> None:
        if self.closed:
            raise StoreError(f"{what}: the connection to etcd was closed by this process")
        if not self.reachable:
            raise StoreUnavailable(f"{what}: no answer from etcd (outage injected)")
        if "" in keys:
            raise StoreError(f"{what}: etcdserver: key is not provided")


class MemoryWatch:
    """An implementation of `Watch` that reads the backend's history from a position on."""

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
    """An implementation of `Lease`; `MemoryBackend.expire` does what a thread does for a real one."""

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
        """Try to renew the lease; return whether it is still held."""
        if self._store.reachable:
            if not self._store.backend.renew(self._id, now):
                return False
            self._expires = now + self._ttl
        return now < self._expires

    def lose(self) -> None:
        """Take in that the lease is gone. Called without the backend's lock, because the owner will use the store."""
        self.abandon()
        self._lost = True
        if self._on_lost is not None:
            self._on_lost()


def _size(operations: Sequence[Operation]) -> int:
    """Return the bytes that operations put, as etcd counts them for its quota: nothing for transactions inside."""
    return sum(len(put.key.encode()) + len(put.value) for put in operations if isinstance(put, Put))
