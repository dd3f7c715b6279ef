"""A coordinator's copy of its farm's record: what its watch has shown, and nothing else. Pure.

Rules that this file guards:
- Only a reading of etcd and the watch's events change it, never a transaction's answer: whoever leads knows exactly what
  the next leader will know, in the same order.
- A leader starts to decide when its own leader key comes by here: all that earlier leaders wrote is in the copy then.
- What is done is told as it comes by, and not kept (`keys.LIVE` says what is).
- A value that this release cannot read (`codec.decode`) is listed in `unreadable` and otherwise overlooked, as if it were
  not there: one bad record must not stop a farm.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from dtf_lightning.errors import ProtocolError
from dtf_lightning.etcd.store import EventKind, KeyValue, WatchEvent
from dtf_lightning.farm.record.codec import decode
from dtf_lightning.farm.record.keys import LIVE, FarmKeys, Kind
from dtf_lightning.farm.record.values import Value

Names = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """A record as it was written last."""

    value: Value
    mod_revision: int
    """What a write compares that is made on this knowledge; of an attempt its identity."""
    create_revision: int
    """Of the leader's key: the epoch."""


@dataclass(frozen=True, slots=True)
class Change:
    """One record that came, changed or went. Of kinds that are not kept `before` is always `None`."""

    kind: Kind
    names: Names
    before: Held | None
    after: Held | None
    revision: int


class Mirror:
    """Not thread-safe: it belongs to whoever applies changes to it."""

    def __init__(self, keys: FarmKeys) -> None:
        self.revision = 0
        """Of the newest event or reading that is in it."""
        self.unreadable: dict[str, str] = {}
        """Key -> why."""
        self._keys = keys
        self._held: dict[Kind, dict[Names, Held]] = {kind: {} for kind in LIVE}

    def all(self, kind: Kind) -> Mapping[Names, Held]:
        """Every record of a kind that is kept, by its names; a view that follows the mirror."""
        return MappingProxyType(self._held[kind])

    def get(self, kind: Kind, *names: str) -> Held | None:
        """One record of a kind that is kept."""
        return self._held[kind].get(names)

    def seen(self, kind: Kind, *names: str) -> int:
        """The mod revision of a record for a write to compare; 0 if there is none."""
        held = self.get(kind, *names)
        return 0 if held is None else held.mod_revision

    def load(self, kvs: Iterable[KeyValue], revision: int) -> list[Change]:
        """Start anew from a reading of every kind that is kept. The changes are those against what was there before.

        After a first reading there may be another, where the watch has lost its place: then what was done in between
        shows only by what is gone.
        """
        changes: list[Change] = []
        missing = {(kind, names) for kind, records in self._held.items() for names in records}
        self.unreadable.clear()
        for kv in kvs:
            parsed = self._keys.parse(kv.key)
            if parsed is not None and parsed[0] in self._held:
                missing.discard(parsed)
                held = self.get(parsed[0], *parsed[1])
                if held is None or held.mod_revision != kv.mod_revision:
                    changes += self._put(*parsed, kv, kv.mod_revision)
        for kind, names in sorted(missing, key=lambda record: (record[0].value, record[1])):
            changes += self._delete(kind, names, revision)
        self.revision = revision
        return changes

    def apply(self, events: Iterable[WatchEvent]) -> list[Change]:
        """What the watch has shown, in its order."""
        changes: list[Change] = []
        for event in events:
            self.revision = event.kv.mod_revision
            parsed = self._keys.parse(event.kv.key)
            if parsed is None:
                continue
            if event.kind is EventKind.PUT:
                changes += self._put(*parsed, event.kv, self.revision)
            else:
                self.unreadable.pop(event.kv.key, None)
                changes += self._delete(*parsed, self.revision)
        return changes

    def _put(self, kind: Kind, names: Names, kv: KeyValue, revision: int) -> list[Change]:
        try:
            value = decode(kind, kv.value)
        except ProtocolError as error:
            self.unreadable[kv.key] = str(error)
            return self._delete(kind, names, revision) if self._held.get(kind, {}).get(names) else []
        self.unreadable.pop(kv.key, None)
        held = Held(value, kv.mod_revision, kv.create_revision)
        before = None
        if kind in self._held:
            before = self._held[kind].get(names)
            self._held[kind][names] = held
        return [Change(kind, names, before, held, revision)]

    def _delete(self, kind: Kind, names: Names, revision: int) -> list[Change]:
        before = self._held[kind].pop(names, None) if kind in self._held else None
        if kind in self._held and before is None:
            return []  # it could not be read
        return [Change(kind, names, before, None, revision)]
