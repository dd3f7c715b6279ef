"""`Store` is what the rest of the package asks of a key-value store: etcd's own vocabulary, nothing more.

Two implementations stand behind this protocol, `EtcdStore` (real etcd v3) and `MemoryStore` (tests, one process); one
contract suite holds both to it (`tests/contract/`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol, TypeAlias

from dtf_lightning.etcd.maintenance import Maintenance

PAGE = 500
"""Keys per answer where a range's reader asks for no other number."""
MAX_OPERATIONS = 128
"""Compares, and operations of a branch, that etcd takes in a transaction at its defaults. What a transaction holds of
the longest of its three lists is taken off for each transaction inside it: 125 of them may have three each."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key as it was at a revision. `version` counts its writes since it was created, from 1; `lease` 0 is none."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class RangeResult:
    """The keys of a range: `kvs` in key order, as of `revision`."""

    revision: int
    kvs: tuple[KeyValue, ...]


class EventKind(Enum):
    """The kind of a change of a key."""

    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change of one key."""

    kind: EventKind
    kv: KeyValue
    """The key after the change. For DELETE only `key` and `mod_revision` (the revision of the deletion) count."""


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of a transaction. A key that is missing has 0 for every number, and no value that compares."""

    key: str
    target: Literal["create", "mod", "version", "value", "lease"]
    op: Literal["=", "!=", "<", ">"]
    operand: int | bytes


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key."""

    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key, or with `prefix` every key that starts with it."""

    key: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Get:
    """Read a key, or with `prefix` every key that starts with it; sees what operations before it have written."""

    key: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Txn:
    """A transaction inside another one: it takes its own branch, whatever becomes of those beside it.

    All compares, also those of transactions inside, see the keys as they were before the outermost one: two that each
    write what the other compares both succeed. All of it has one revision, and one batch in a watch. No key may be put
    twice, nor put where one has been deleted, by any of the branches that could run together.

    etcd before 3.4.42, 3.5.28 and 3.6.9 does not ask whether its user may touch the keys of a transaction inside another
    (CVE-2026-33343): there, permissions on prefixes keep nobody out.
    """

    compares: tuple[Compare, ...]
    then: tuple[Operation, ...]
    otherwise: tuple[Operation, ...] = ()


Operation: TypeAlias = Put | Delete | Get | Txn
"""The operations that a branch of a transaction is made of."""


@dataclass(frozen=True, slots=True)
class TxnResult:
    """The result of a transaction. `revision` is the store's after it, its own if it wrote anything."""

    succeeded: bool
    revision: int
    gets: tuple[tuple[KeyValue, ...], ...] = ()
    """One tuple for each `Get` of the branch that ran, in order."""
    nested: tuple[TxnResult, ...] = ()
    """One result for each `Txn` of the branch that ran, in order."""


class Watch(Protocol):
    """A stream of event batches; a batch holds whole revisions. It survives lost connections without losing an event."""

    def get(self, timeout: float | None = None) -> tuple[WatchEvent, ...] | None:
        """Return the next batch; `None` once cancelled; an empty tuple when `timeout` seconds have passed.

        Raises `WatchCompacted`, `AuthenticationFailed`, `StoreError` (closed store).
        """
        ...

    def cancel(self) -> None:
        """End the watch and wake `get`. Idempotent."""
        ...


class Lease(Protocol):
    """A lease that is kept alive by a thread until revoked."""

    @property
    def id(self) -> int: ...
    @property
    def ttl(self) -> float:
        """The seconds of the lease, as granted (etcd may grant more than was asked)."""
        ...

    @property
    def lost(self) -> bool:
        """Whether etcd said that the lease is gone, or it went unrenewed for its TTL."""
        ...

    def revoke(self) -> None:
        """Stop renewing and delete the lease with its keys. Idempotent; a store that is away is not an error."""
        ...

    def abandon(self) -> None:
        """Stop renewing and leave the lease to expire."""
        ...


class Store(Protocol):
    """A key-value store with etcd's operations. Thread-safe; `StoreUnavailable` when no endpoint answered within a
    deadline.

    Keys are str (UTF-8). A write whose answer was lost raises `OutcomeUnknown`, one that etcd's quota leaves no room
    for `StoreFull`. `timeout` is in seconds; `None`: the store's own.
    """

    @property
    def maintenance(self) -> Maintenance:
        """The care of the database behind the keys."""
        ...

    def get(self, key: str, *, timeout: float | None = None) -> KeyValue | None:
        """Return the key as it is now; `None` if there is none."""
        ...

    def range(
        self, prefix: str, *, revision: int = 0, page_size: int = PAGE, timeout: float | None = None
    ) -> RangeResult:
        """Return all keys that start with `prefix`, paged underneath, as of one revision (0: now).

        `page_size`: keys per answer. etcd counts all that is left of the range for each page, so that a million keys in
        pages of 500 take it minutes: ask for 10,000 where values are small. An answer is in memory as a whole.

        Raises `RevisionCompacted` for a `revision` whose history etcd has let go, `StoreError` for one to come.
        """
        ...

    def count(self, prefix: str, *, timeout: float | None = None) -> int:
        """Return the number of keys that start with `prefix`, without reading them."""
        ...

    def put(self, key: str, value: bytes, *, lease: int = 0, timeout: float | None = None) -> int:
        """Write a key; return the revision. Idempotent: retried on lost answers until the deadline.

        An attempt that a frozen server held back may still be applied after a later write: where that matters, use
        `txn` and compare. Raises `LeaseLost` if there is no such lease.
        """
        ...

    def delete(self, key: str, *, prefix: bool = False, timeout: float | None = None) -> int:
        """Delete keys; return their number (by the attempt that was answered, if earlier ones were lost)."""
        ...

    def txn(
        self,
        compares: Iterable[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        """Make all of `then` if every compare holds, else all of `otherwise`, at one revision.

        Never retried once sent: raises `OutcomeUnknown` if the answer was lost, `LeaseLost` if a put's lease is gone.
        """
        ...

    def watch(self, prefix: str, *, start_revision: int = 0) -> Watch:
        """Return a watch of the keys under `prefix` from `start_revision` on (0: from now, settled by the return)."""
        ...

    def lease(self, ttl: float, *, on_lost: Callable[[], None] | None = None) -> Lease:
        """Grant a lease and keep it alive. `on_lost()` is called once, from the lease's thread."""
        ...

    def close(self) -> None:
        """End the connection. Watches end with an error, leases are left to expire (revoke them first)."""
        ...


def writes(operation: Operation) -> bool:
    """Return whether any branch of an operation could change a key."""
    if isinstance(operation, Txn):
        return any(map(writes, (*operation.then, *operation.otherwise)))
    return not isinstance(operation, Get)


def describe(operations: Sequence[Operation]) -> str:
    """Return a short text for messages: the first keys that a transaction is about, and how many more."""
    keys = list(_keys(operations))
    if not keys:
        return "no operation"
    told = ", ".join(map(repr, keys[:_KEYS_TOLD]))
    return f"{told} and {len(keys) - _KEYS_TOLD} more" if len(keys) > _KEYS_TOLD else told


_KEYS_TOLD = 3


def _keys(operations: Sequence[Operation]) -> Iterable[str]:
    for operation in operations:
        if isinstance(operation, Txn):
            yield from _keys(operation.then)
        else:
            yield operation.key
