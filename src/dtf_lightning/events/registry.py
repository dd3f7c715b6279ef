"""A product's kinds of events: each a frozen dataclass whose fields are JSON, registered with `EventRegistry.register`.

A registry belongs to one product, so that two products may have a kind of the same name. Every line carries the version
of its registry's schema: older lines are migrated when they are read, newer ones are refused. A field that is added
later needs a default, or a new version with a migration.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, ClassVar, TypeVar


class EventLogError(ValueError):
    """A line that is no event of a version that this program reads; the message names file and line."""


class NewerEvents(EventLogError):
    """Written by a newer version of this package: nothing is wrong with the file."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened. `at` is in seconds since the epoch; who says so is `source`."""

    registry: ClassVar[EventRegistry]
    """Set by `EventRegistry.register`, as is `kind`."""
    kind: ClassVar[str]
    at: float
    source: str = ""
    """Who saw it, in the product's words: a node, or one of its workers."""

    def to_json(self) -> dict[str, Any]:
        return {"v": self.registry.version, "kind": self.kind, **asdict(self)}

    def describe(self) -> str:
        """The event in a sentence for people; an important kind has one of its own."""
        return self.kind


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event):
    """A line of a kind that this version does not know, as it was read."""

    kind: ClassVar[str] = "unknown"
    data: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return self.data

    def describe(self) -> str:
        return str(self.data.get("kind"))


E = TypeVar("E", bound=Event)


class EventRegistry:
    """The kinds of one product's events, in the order in which they were registered.

    Args:
        version: of the schema, from 1.
        migrations: from each older version to the next one: changes an event's JSON in place.
        without_log: what a log that cannot be written costs, for the warning.
    """

    def __init__(
        self,
        *,
        version: int = 1,
        migrations: Mapping[int, Callable[[dict[str, Any]], None]] | None = None,
        without_log: str = "its events are lost",
    ) -> None:
        self.version = version
        self.without_log = without_log
        self._migrations = dict(migrations or {})
        assert self._migrations.keys() == set(range(1, version)), "a migration from each older version"
        self.kinds: dict[str, type[Event]] = {}
        self._fields: dict[str, list[tuple[str, Callable[[Any], bool], bool]]] = {}
        self._important: set[str] = set()

    @property
    def important(self) -> frozenset[str]:
        """Kinds that people want to see while the product is at work."""
        return frozenset(self._important)

    def register(self, kind: str, *, important: bool = False) -> Callable[[type[E]], type[E]]:
        """A class decorator: events of this class are written as `kind`. `important`: people want to see them."""

        def add(cls: type[E]) -> type[E]:
            assert kind not in self.kinds, f"{kind} is {self.kinds[kind].__name__} already"
            assert not important or cls.describe is not Event.describe, f"{kind}: important, but no sentence for people"
            self._fields[kind] = _fields(cls)
            cls.registry, cls.kind = self, kind
            self.kinds[kind] = cls
            if important:
                self._important.add(kind)
            return cls

        return add

    def parse(self, line: bytes | str) -> Event:
        """The event of one line, older versions migrated. Raises `EventLogError`, `NewerEvents`."""
        try:
            data = json.loads(line)
        except ValueError as error:
            raise EventLogError(f"expected one JSON object a line, got {line[:80]!r}") from error
        if not isinstance(data, dict):
            raise EventLogError(f"expected one JSON object a line, got {line[:80]!r}")
        return self.from_json(data)

    def from_json(self, data: Mapping[str, Any]) -> Event:
        """The event of `Event.to_json`'s data, older versions migrated. Raises `EventLogError`, `NewerEvents`."""
        version = data.get("v")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise EventLogError(f"no line of an event log: its version is {version!r}")
        if version > self.version:
            raise NewerEvents(
                f"event version {version}, this program reads up to {self.version}; read it with the version of "
                "dtf-lightning that wrote it, or a newer one: pip install --upgrade dtf-lightning"
            )
        data = dict(data)
        for older in range(version, self.version):
            self._migrations[older](data)
        return self._event(data)

    def _event(self, data: dict[str, Any]) -> Event:
        kind = data.get("kind", "")
        cls = self.kinds.get(kind) if isinstance(kind, str) else None
        if cls is None:
            return UnknownEvent(at=data.get("at", 0.0), source=data.get("source", ""), data=data)
        values: dict[str, Any] = {}
        for name, check, required in self._fields[kind]:
            if name in data:
                value = data[name]
                if not check(value):
                    raise EventLogError(f"{cls.kind}: {name} is {value!r}, which it cannot be")
                values[name] = tuple(value) if isinstance(value, list) else value
            elif required:
                raise EventLogError(f"{cls.kind}: {name} is missing")
        return cls(**values)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_dict(of: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: type(value) is dict and all(map(of, value.values()))


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "float": _is_number,
    "int": lambda value: type(value) is int,
    "str": lambda value: type(value) is str,
    "bool": lambda value: type(value) is bool,
    "float | None": lambda value: value is None or _is_number(value),
    "int | None": lambda value: value is None or type(value) is int,
    "tuple[str, ...]": lambda value: type(value) in (list, tuple) and all(type(item) is str for item in value),
    "dict[str, float]": _is_dict(_is_number),
    "dict[str, Any]": _is_dict(lambda _: True),
}
"""By the annotation of a field: what a JSON value of it must be."""


def _fields(cls: type[Event]) -> list[tuple[str, Callable[[Any], bool], bool]]:
    """Name, check and whether it must be there, of each field of an event's class."""
    return [(f.name, _CHECKS[str(f.type)], f.default is MISSING and f.default_factory is MISSING) for f in fields(cls)]
