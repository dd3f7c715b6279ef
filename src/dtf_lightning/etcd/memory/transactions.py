"""The in-memory twin's transactions: what etcd refuses before it looks, which branches run, and what they answer.

Rules, which are etcd's (`api/v3rpc/key.go`, `checkTxnRequest` and `checkIntervals`):
- Both branches are checked, whichever would run.
- Every compare sees the keys as they were before the outermost transaction.
- A put meets a delete of its own level and those of transactions before it, not of transactions after it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dtf_lightning.errors import StoreError
from dtf_lightning.etcd.store import MAX_OPERATIONS, Compare, Delete, Get, KeyValue, Operation, Put, Txn, TxnResult


@dataclass(frozen=True)
class Chosen:
    """A transaction whose branch is settled, with all in it."""

    succeeded: bool
    operations: tuple[Put | Delete | Get | Chosen, ...]

    def flat(self) -> Iterator[Put | Delete | Get]:
        """All operations, in the order in which they are made."""
        for operation in self.operations:
            if isinstance(operation, Chosen):
                yield from operation.flat()
            else:
                yield operation

    def result(self, revision: int, gets: Iterator[tuple[KeyValue, ...]]) -> TxnResult:
        """Return the transaction's result. `gets`: what every get of `flat` saw, in order."""
        own, nested = [], []
        for operation in self.operations:
            match operation:
                case Chosen():
                    nested.append(operation.result(revision, gets))
                case Get():
                    own.append(next(gets))
        return TxnResult(self.succeeded, revision, tuple(own), tuple(nested))


def choose(txn: Txn, holds: Callable[[Compare], bool]) -> Chosen:
    """Return the branches that run, before anything is changed."""
    succeeded = all(map(holds, txn.compares))
    branch = txn.then if succeeded else txn.otherwise
    return Chosen(succeeded, tuple(choose(o, holds) if isinstance(o, Txn) else o for o in branch))


def check(txn: Txn, num_allowed: int = MAX_OPERATIONS) -> None:
    """Check a transaction as etcd does. Raises `StoreError` with etcd's words for what it would not take."""
    num_longest = max(len(txn.compares), len(txn.then), len(txn.otherwise))
    if num_longest > num_allowed:
        raise StoreError("transaction: etcdserver: too many operations in txn request")
    for operation in (*txn.then, *txn.otherwise):
        if isinstance(operation, Txn):
            check(operation, num_allowed - num_longest)
        elif not operation.key and not getattr(operation, "prefix", False):
            raise StoreError("transaction: etcdserver: key is not provided")
    if num_allowed == MAX_OPERATIONS:
        for branch in (txn.then, txn.otherwise):
            _written(branch)


def _written(branch: Sequence[Operation]) -> tuple[set[str], list[Delete]]:
    """Return the keys that are put, and what is deleted. Raises `StoreError` for a key that is written twice."""
    deletes = [operation for operation in branch if isinstance(operation, Delete)]
    puts: set[str] = set()
    for operation in branch:
        if isinstance(operation, Txn):
            (then, then_deletes), (otherwise, otherwise_deletes) = map(_written, (operation.then, operation.otherwise))
            _add(puts, then, deletes)
            _add(puts, otherwise - then, deletes)
            deletes += then_deletes + otherwise_deletes
    for operation in branch:
        if isinstance(operation, Put):
            _add(puts, {operation.key}, deletes)
    return puts, deletes


def _add(puts: set[str], more: set[str], deletes: list[Delete]) -> None:
    overlap = any(key == d.key or (d.prefix and key.startswith(d.key)) for key in more for d in deletes)
    if overlap or puts & more:
        raise StoreError("transaction: etcdserver: duplicate key given in txn request")
    puts |= more
