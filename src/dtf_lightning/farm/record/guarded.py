"""Guarded writes, and which of them may share a transaction: pure.

Rules that this file guards:
- Batching is not seen: writes do what they would have done one after the other, in the order in which they came.
  All compares of a transaction see the keys as they were before it. So of two writes of which one touches a key that the
  other writes, the second waits for the next batch; and so does whatever depends in this way on one that waits.
- It does not matter which of the two comes first. The first could do without the second's waiting if every answer came;
  but where one is lost, and the batch is tried again, the first would see what the second has written.
- A batch is one etcd takes: `MAX_OPERATIONS` for the number of its writes and the widest of them together, and a size
  well below the 1.5 MB of a request.
- Every guard makes a second application of its write fail, so that a write whose answer was lost can be tried again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from dtf_lightning.etcd.store import MAX_OPERATIONS, Compare, Delete, Get, KeyValue, Put, Txn

_OVERHEAD = 24
"""Bytes of a compare or an operation beside its key and value, at most."""


def absent(key: str) -> Compare:
    """Guard by a key that is not there."""
    return Compare(key, "version", "=", 0)


def present(key: str) -> Compare:
    """Guard by a key that is there."""
    return Compare(key, "version", ">", 0)


def as_seen(key: str, revision: int) -> Compare:
    """Guard by a key that nobody has written since. `revision`: its mod revision as seen; 0 if it was not there."""
    return Compare(key, "mod", "=", revision)


@dataclass(frozen=True)
class Guarded:
    """A write that is made if all its compares hold, and else reads.

    Args:
        label: what it does, for messages.
        compares: its guard. At least one of them must fail once the write has been made.
        then: the write; no key twice, and no prefixes.
        reads: keys that are read, in the same transaction, if the guard does not hold: they say why.
    """

    label: str
    compares: tuple[Compare, ...]
    then: tuple[Put | Delete, ...]
    reads: tuple[str, ...] = ()
    written: frozenset[str] = field(init=False, repr=False, compare=False)
    """Keys that it may change."""
    touched: frozenset[str] = field(init=False, repr=False, compare=False)
    """Keys that it writes or looks at."""
    size: int = field(init=False, repr=False, compare=False)
    """Bytes in a request, about: a farm's keys are ASCII."""

    def __post_init__(self) -> None:
        written = frozenset([operation.key for operation in self.then])
        assert len(written) == len(self.then), (self.label, self.then)
        assert self.width < MAX_OPERATIONS, (self.label, self.width)
        size = sum(map(len, self.reads))
        for compare in self.compares:
            size += len(compare.key) + (len(compare.operand) if isinstance(compare.operand, bytes) else 0)
        for operation in self.then:
            size += len(operation.key)
            if isinstance(operation, Put):
                size += len(operation.value)
            else:
                assert not operation.prefix, self.label
        size += _OVERHEAD * (len(self.reads) + len(self.compares) + len(self.then))
        object.__setattr__(self, "written", written)
        object.__setattr__(self, "touched", written.union([compare.key for compare in self.compares], self.reads))
        object.__setattr__(self, "size", size)

    @property
    def width(self) -> int:
        """The longest of its lists, which is what etcd counts."""
        return max(len(self.compares), len(self.then), len(self.reads))

    def transaction(self) -> Txn:
        """As a part of a batch."""
        return Txn(self.compares, self.then, tuple(map(Get, self.reads)))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a guarded write went."""

    applied: bool
    revision: int
    """The store's after it: the write's own if it was applied."""
    found: tuple[KeyValue | None, ...] = ()
    """If it was not applied: what `reads` found, in their order."""
    unsure: bool = False
    """An earlier try's answer was lost: not applied this time may mean that it was applied then."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How large a batch may be."""

    num_writes: int = 125
    num_bytes: int = 1_000_000

    def __post_init__(self) -> None:
        assert 0 < self.num_writes < MAX_OPERATIONS, self.num_writes


class Place(Enum):
    """Where a write goes that is offered to a batch."""

    IN = "in"
    LATER = "later"
    """It depends on one that is in the batch, or on one that waits for a later batch too."""
    FULL = "full"
    """The batch is as large as it may be; nothing that came after may go in either."""


class Batch:
    """Collects writes for one transaction, which are offered in the order in which they came."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._num_writes = self._width = self._size = 0
        # By all that were offered, those that wait too:
        self._written: set[str] = set()
        self._touched: set[str] = set()

    def offer(self, guarded: Guarded) -> Place:
        """Where it goes. A first write always goes in, however large."""
        depends = not (self._written.isdisjoint(guarded.touched) and self._touched.isdisjoint(guarded.written))
        if not depends and self._num_writes and not self._fits(guarded):
            return Place.FULL
        self._written |= guarded.written
        self._touched |= guarded.touched
        if depends:
            return Place.LATER
        self._num_writes += 1
        self._width = max(self._width, guarded.width)
        self._size += guarded.size
        return Place.IN

    def _fits(self, guarded: Guarded) -> bool:
        num_writes, width = self._num_writes + 1, max(self._width, guarded.width)
        return (
            num_writes <= self._limits.num_writes
            and num_writes + width <= MAX_OPERATIONS
            and self._size + guarded.size <= self._limits.num_bytes
        )
