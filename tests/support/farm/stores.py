"""Stores that misbehave on purpose: answers that are lost, transactions that wait for a word."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Any

from dtf_lightning.errors import OutcomeUnknown, StoreUnavailable
from dtf_lightning.etcd.store import Store


class FaultyStore:
    """Another store, whose transactions go wrong as they are told to: one fault for each, in order, then none.

    `applied`: made, but the answer is lost. `lost`: the answer is lost, and it was not made. `away`: nobody answers.
    """

    def __init__(self, inner: Store, faults: Iterable[str | None] = ()) -> None:
        self._inner = inner
        self.faults = list(faults)
        self.batches: list[int] = []
        """How many operations each transaction had that was asked for."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def txn(self, compares, then, otherwise=(), *, timeout=None):
        self.batches.append(len(then))
        fault = self.faults.pop(0) if self.faults else None
        if fault == "away":
            raise StoreUnavailable("transaction: no answer (injected)")
        if fault == "lost":
            raise OutcomeUnknown("transaction: sent, not made, not answered (injected)")
        result = self._inner.txn(compares, then, otherwise, timeout=timeout)
        if fault == "applied":
            raise OutcomeUnknown("transaction: made, but not answered (injected)")
        return result


class GatedStore(FaultyStore):
    """Each transaction waits for `gate` before it is made, and says by `asked` that it waits."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.gate = threading.Semaphore(0)
        self.asked = threading.Semaphore(0)

    def txn(self, compares, then, otherwise=(), *, timeout=None):
        self.asked.release()
        assert self.gate.acquire(timeout=60)
        return super().txn(compares, then, otherwise, timeout=timeout)


class HarmedStore(FaultyStore):
    """Does `harm` at the same time as the next transaction once armed: etcd is hit with a batch under way."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self._armed: Callable[[], None] | None = None
        self._lock = threading.Lock()
        self.harmed = threading.Event()

    def arm(self, harm: Callable[[], None]) -> None:
        with self._lock:
            self._armed = harm

    def txn(self, compares, then, otherwise=(), *, timeout=None):
        with self._lock:
            harm, self._armed = self._armed, None
        if harm is None:
            return super().txn(compares, then, otherwise, timeout=timeout)
        thread = threading.Thread(target=harm)
        thread.start()
        try:
            return super().txn(compares, then, otherwise, timeout=timeout)
        finally:
            thread.join()
            self.harmed.set()
