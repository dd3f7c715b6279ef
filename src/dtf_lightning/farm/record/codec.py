"""The values of a farm's records as bytes: JSON objects with a version, for coordinators of several releases at once.

Rules:
- `v` is the version of this kind of value. It grows when an older release would act wrongly on what a newer one has
  written; such a value is refused by the older release, by name. A field that may be overlooked is added without that.
- A reader takes every version up to its own: `UPGRADES` brings an older object to the next version, step by step.
- A field that has its default is left out; one that this release does not know is passed over.
- The text is the same for equal values, so that bytes can be compared. It is Python's JSON: NaN is a number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from dtf_lightning.errors import ProtocolError
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.values import (
    Attempt,
    CoordinatorRecord,
    Envelope,
    FailedAttempt,
    KeyRecord,
    LeaderRecord,
    TaskSpecification,
    Tombstone,
    Value,
    WorkerRecord,
)

MAX_ENVELOPE = 8192
"""Bytes of an envelope: at 500 tasks a second, ten minutes of them are 2 GB at most."""

CLASSES: dict[Kind, type[Value]] = {
    Kind.LEADER: LeaderRecord,
    Kind.COORDINATOR: CoordinatorRecord,
    Kind.WORKER: WorkerRecord,
    Kind.TASK: TaskSpecification,
    Kind.ATTEMPT: Attempt,
    Kind.DONE: Envelope,
    Kind.FAILED: FailedAttempt,
    Kind.KEY: KeyRecord,
    Kind.TOMBSTONE: Tombstone,
}
"""What a key of each kind holds, as far as there is something yet."""

VERSIONS: dict[type[Value], int] = dict.fromkeys(CLASSES.values(), 1)
"""The version in which this release writes each."""

_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, sort_keys=True)

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
UPGRADES: dict[tuple[type[Value], int], Upgrade] = {}
"""(class, version) -> what makes an object of that version one of the next."""


def encode(value: Value) -> bytes:
    """The bytes for etcd. Raises `ProtocolError` for an envelope that is too large."""
    body = {"v": VERSIONS[type(value)], **_plan(type(value)).to_json(value)}
    text = _ENCODER.encode(body)
    data = text.encode(errors="surrogatepass")
    if isinstance(value, Envelope) and len(data) > MAX_ENVELOPE:
        raise ProtocolError(
            f"the envelope of a result has {len(data)} bytes, {MAX_ENVELOPE} are allowed: test cases, logs and series "
            "belong into artifacts"
        )
    return data


def decode(kind: Kind, data: bytes) -> Value:
    """The value that a key of this kind holds.

    Raises `ProtocolError` for what is no such value, and for one of a newer release that this one must not act on.
    """
    cls = CLASSES.get(kind)
    if cls is None:
        raise ProtocolError(f"a value under {kind.value}/ is unknown to this release")
    try:
        body = json.loads(data)
        version = body.pop("v")
        if type(version) is int and version > VERSIONS[cls]:
            raise ProtocolError(
                f"a {cls.__name__} of version {version} was written by a newer release; this one reads up to version "
                f"{VERSIONS[cls]}: update it"
            )
        for step in range(version, VERSIONS[cls]):
            body = UPGRADES[cls, step](body)
        value: Value = _plan(cls).from_json(body)
        return value
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ProtocolError(f"no {cls.__name__}: {error!r} in {data[:200]!r}") from error


# --- dataclasses as JSON ---------------------------------------------------------------------------------------------

_Step = Callable[[Any], Any]


@dataclass(frozen=True)
class _Field:
    name: str
    default: Any
    """`MISSING` if it has none."""
    to_json: _Step
    from_json: _Step


class _Plan:
    """How one dataclass is written and read; made once for each class."""

    def __init__(self, cls: type) -> None:
        self._cls = cls
        hints = get_type_hints(cls)
        self._fields = [
            _Field(
                field.name,
                field.default_factory() if field.default_factory is not MISSING else field.default,
                *_steps(hints[field.name]),
            )
            for field in fields(cls)
        ]

    def to_json(self, value: Any) -> dict[str, Any]:
        given = ((field, getattr(value, field.name)) for field in self._fields)
        return {field.name: field.to_json(part) for field, part in given if part != field.default}

    def from_json(self, body: Mapping[str, Any]) -> Any:
        """Raises `ValueError`, `TypeError` and `KeyError` for what does not fit."""
        known = {field.name: field.from_json(body[field.name]) for field in self._fields if field.name in body}
        return self._cls(**known)


def _plan(cls: type) -> _Plan:
    plan = _PLANS.get(cls)
    if plan is None:
        plan = _PLANS[cls] = _Plan(cls)
    return plan


_PLANS: dict[type, _Plan] = {}


def _steps(hint: Any) -> tuple[_Step, _Step]:
    """How a value of this type becomes JSON, and how it comes back."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        (inner,) = (argument for argument in arguments if argument is not NoneType)
        to_json, from_json = _steps(inner)
        return _unless_none(to_json), _unless_none(from_json)
    if origin is tuple:
        to_json, from_json = _steps(arguments[0])
        return (
            lambda values: [to_json(value) for value in values],
            lambda values: tuple(from_json(value) for value in _exactly(list)(values)),
        )
    if origin is Mapping:
        to_json, from_json = _steps(arguments[1])
        return (
            lambda values: {name: to_json(value) for name, value in values.items()},
            lambda values: {name: from_json(value) for name, value in _exactly(dict)(values).items()},
        )
    if isinstance(hint, type) and issubclass(hint, Enum):
        return lambda value: value.value, hint
    if is_dataclass(hint):
        assert isinstance(hint, type)
        return lambda value: _plan(hint).to_json(value), lambda body: _plan(hint).from_json(_exactly(dict)(body))
    if hint is float:
        return float, _number
    assert hint in (str, int, bool), hint
    return _exactly(hint), _exactly(hint)


def _unless_none(step: _Step) -> _Step:
    return lambda value: None if value is None else step(value)


def _exactly(wanted: type) -> _Step:
    def same(value: Any) -> Any:
        if type(value) is not wanted:
            raise TypeError(f"expected {wanted.__name__}, got {value!r}")
        return value

    return same


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"expected a number, got {value!r}")
    return float(value)
