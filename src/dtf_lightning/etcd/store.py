"""What the rest of the package asks of a key-value store: etcd's own vocabulary, nothing more.

Two implementations stand behind this protocol, `EtcdStore` (real etcd v3) and `MemoryStore` (tests, one process); one
contract suite holds both to it (`tests/contract/test_store_contract.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal, Protocol


@dataclass(frozen=True, slots=True)
class KeyValue:
    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int = 0


@dataclass(frozen=True, slots=True)
class RangeResult:
    """`kvs` in key order, as of `revision`."""

    revision: int
    kvs: tuple[KeyValue, ...]


class EventKind(Enum):
    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    kind: EventKind
    kv: KeyValue
    """For DELETE: only `key` and `mod_revision` (the revision of the deletion) mean something."""


@dataclass(frozen=True, slots=True)
class Compare:
    key: str
    target: Literal["create", "mod", "version", "value", "lease"]
    op: Literal["=", "!=", "<", ">"]
    operand: int | bytes


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Delete:
    key: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class Get:
    key: str
    prefix: bool = False


@dataclass(frozen=True, slots=True)
class TxnResult:
    succeeded: bool
    revision: int
    gets: tuple[tuple[KeyValue, ...], ...] = ()
    """One tuple for each `Get` of the branch that ran, in order."""


class Watch(Protocol):
    """A stream of event batches; a batch holds whole revisions. Survives lost connections without losing an event."""

    def get(self, timeout: float | None = None) -> tuple[WatchEvent, ...] | None:
        """The next batch; `None` once cancelled; an empty tuple when `timeout` seconds passed.

        Raises `WatchCompacted`, `AuthenticationFailed`, `StoreError` (closed store).
        """
        ...

    def cancel(self) -> None:
        """Idempotent; wakes `get`."""
        ...


class Lease(Protocol):
    """A lease that is kept alive by a thread until revoked."""

    @property
    def id(self) -> int: ...
    @property
    def ttl(self) -> float:
        """Seconds, as granted (etcd may grant more than was asked)."""
        ...

    @property
    def lost(self) -> bool:
        """etcd said the lease is gone, or it went unrenewed for its TTL."""
        ...

    def revoke(self) -> None:
        """Stop renewing and delete the lease with its keys. Idempotent; a store that is away is not an error."""
        ...

    def abandon(self) -> None:
        """Stop renewing and leave the lease to expire."""
        ...


class Store(Protocol):
    """Thread-safe. Every call has a deadline; `StoreUnavailable` when no endpoint answered within it.

    Keys are str (UTF-8). A write whose answer was lost raises `OutcomeUnknown`.
    """

    def get(self, key: str, *, timeout: float | None = None) -> KeyValue | None: ...
    def range(self, prefix: str, *, timeout: float | None = None) -> RangeResult:
        """All keys that start with `prefix`, paged underneath, as of one revision."""
        ...

    def put(self, key: str, value: bytes, *, lease: int = 0, timeout: float | None = None) -> int:
        """The revision. Idempotent: retried on lost answers until the deadline.

        An attempt that a frozen server held back may still be applied after a later write: where that matters, use
        `txn` and compare. Raises `LeaseLost` if there is no such lease.
        """
        ...

    def delete(self, key: str, *, prefix: bool = False, timeout: float | None = None) -> int:
        """The number of keys deleted (by the attempt that was answered, if earlier ones were lost)."""
        ...

    def txn(
        self,
        compares: Iterable[Compare],
        then: Sequence[Put | Delete | Get],
        otherwise: Sequence[Put | Delete | Get] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        """All of `then` if every compare holds, else all of `otherwise`; at one revision.

        Never retried once sent: raises `OutcomeUnknown` if the answer was lost, `LeaseLost` if a put's lease is gone.
        """
        ...

    def watch(self, prefix: str, *, start_revision: int = 0) -> Watch:
        """Events of keys under `prefix` from `start_revision` on (0: from now, settled before this returns)."""
        ...

    def lease(self, ttl: float, *, on_lost: Callable[[], None] | None = None) -> Lease:
        """Grant a lease and keep it alive. `on_lost()` is called once, from the lease's thread."""
        ...

    def close(self) -> None: ...
