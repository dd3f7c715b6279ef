"""`Election` elects a leader: the winner creates a key under its lease; its create revision is the fencing token.

Rules:
- A leader writes only by transactions that hold `Leadership.fence`. One that was deposed without knowing fails there.
- The create revision grows with every new leader: an epoch that is smaller than one already seen is from the past.
- An attempt whose answer was lost is recognised by its lease, so nobody campaigns against itself.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from dtf_lightning.errors import OutcomeUnknown, StoreUnavailable
from dtf_lightning.etcd.store import Compare, Delete, EventKind, Get, KeyValue, Put, Store

TIMEOUT = 5.0


@dataclass(frozen=True, slots=True)
class Leadership:
    key: str
    value: bytes
    """The text that the leader wrote about itself."""
    epoch: int
    """The key's create revision: the fencing token."""
    lease: int

    @property
    def fence(self) -> Compare:
        """Return the condition that holds only as long as this leadership does."""
        return Compare(self.key, "create", "=", self.epoch)


class Election:
    """An election on any `Store`. Raises what its transactions raise, except `OutcomeUnknown`, which it resolves."""

    def __init__(self, store: Store, key: str) -> None:
        self._store = store
        self.key = key

    def try_acquire(self, value: bytes, lease: int, *, timeout: float = TIMEOUT) -> Leadership:
        """Return who leads now: this client (`.lease == lease`), or who was first. Raises `LeaseLost` without a lease."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            vacant = Compare(self.key, "create", "=", 0)
            try:
                result = self._store.txn([vacant], [Put(self.key, value, lease)], [Get(self.key)], timeout=left)
            except OutcomeUnknown:
                # Tried again it either wins, or finds its own lease there.
                continue
            if result.succeeded:
                return Leadership(self.key, value, result.revision, lease)
            return _leadership(result.gets[0][0])
        raise StoreUnavailable(f"election {self.key!r}: etcd left it open for {timeout:.1f} s who leads")

    def resign(self, leadership: Leadership, *, timeout: float = TIMEOUT) -> bool:
        """Give the leadership up; return whether it was still held. Harmless if it was not."""
        deadline = time.monotonic() + timeout
        unsure = False
        while (left := deadline - time.monotonic()) > 0:
            try:
                succeeded = self._store.txn([leadership.fence], [Delete(self.key)], timeout=left).succeeded
            except OutcomeUnknown:
                unsure = True
                continue
            # After a lost answer, failing at the fence most likely means that the first attempt went through.
            return succeeded or unsure
        raise StoreUnavailable(f"election {self.key!r}: etcd did not confirm within {timeout:.1f} s that we resigned")

    def leader(self, *, timeout: float | None = None) -> Leadership | None:
        kv = self._store.get(self.key, timeout=timeout)
        return None if kv is None else _leadership(kv)

    def wait_until_vacant(self, epoch: int, *, timeout: float) -> bool:
        """Return whether the leader of `epoch` has gone within `timeout` seconds."""
        deadline = time.monotonic() + timeout
        current = self.leader(timeout=timeout)
        if current is None or current.epoch != epoch:
            return True
        watch = self._store.watch(self.key, start_revision=epoch + 1)
        try:
            while (left := deadline - time.monotonic()) > 0:
                events = watch.get(timeout=left) or ()
                if any(event.kind is EventKind.DELETE and event.kv.key == self.key for event in events):
                    return True
            return False
        finally:
            watch.cancel()


def _leadership(kv: KeyValue) -> Leadership:
    return Leadership(kv.key, kv.value, kv.create_revision, kv.lease)
