"""Frozen dataclasses as JSON objects: what is written in a farm's record, and what its processes say to each other.

Rules:
- A field that has its default is left out; one that is not known is passed over.
- The types of fields are `str`, `int`, `bool`, `float`, enumerations, dataclasses of these, `tuple[X, ...]`,
  `Mapping[str, X]`, and `X | None`.
- The text is Python's JSON: NaN is a number, text may be any (a command's output need not be UTF-8), integers have no end.
  orjson, which has none of these, writes and reads all else: in a flood of small tasks this is a coordinator's work.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from enum import Enum
from operator import attrgetter
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import orjson

T = TypeVar("T")

_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, sort_keys=True)
_ASCII = json.JSONEncoder(separators=(",", ":"), sort_keys=True)


def write_json(body: Mapping[str, Any], *, utf8: bool = False) -> bytes:
    """Return a JSON object as text, the same for equal objects: its names are sorted, and there are no blanks.

    `utf8`: whether it must be UTF-8, as a WebSocket's messages; else what is none is kept as Python's surrogates.
    """
    try:
        data = orjson.dumps(body, option=orjson.OPT_SORT_KEYS)
        # orjson's word for a number that is not finite; that the text of some field holds it, too, does no harm.
        if b"null" not in data:
            return data
    except TypeError:  # a text that is no UTF-8, an integer beyond 64 bits
        pass
    return _ASCII.encode(body).encode() if utf8 else _ENCODER.encode(body).encode(errors="surrogatepass")


def read_json(text: str | bytes, made: Callable[[Any], T]) -> T:
    """Return what `made` makes of what a text says.

    Raises `ValueError`, and what `made` raises.
    """
    try:
        return made(orjson.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError):
        # It may be one that only Python reads; if it is none, Python says what is wrong.
        return made(json.loads(text))


def to_json(value: Any) -> dict[str, Any]:
    """Return a dataclass as a JSON object."""
    return _plan(type(value)).to_json(value)


def from_json(cls: type[T], body: Mapping[str, Any]) -> T:
    """Return the dataclass that a JSON object stands for.

    Raises `ValueError`, `TypeError` or `KeyError` for one that does not fit.
    """
    made: T = _plan(cls).from_json(body)
    return made


_Step = Callable[[Any], Any]


class _Plan:
    """How one dataclass is written and read; made once for each class."""

    def __init__(self, cls: type) -> None:
        hints = get_type_hints(cls)
        named = fields(cls)
        steps = [_steps(hints[field.name]) for field in named]
        self._cls = cls
        self._parts = _parts([field.name for field in named])
        self._writes = [(field.name, _default(field), step) for field, (step, _) in zip(named, steps, strict=True)]
        self._reads = {field.name: step for field, (_, step) in zip(named, steps, strict=True)}

    def to_json(self, value: Any) -> dict[str, Any]:
        return {
            name: step(part)
            for (name, default, step), part in zip(self._writes, self._parts(value), strict=True)
            if part is not default and part != default
        }

    def from_json(self, body: Mapping[str, Any]) -> Any:
        """Raises `ValueError`, `TypeError` and `KeyError` for what does not fit."""
        reads = self._reads
        return self._cls(**{name: reads[name](part) for name, part in body.items() if name in reads})


def _parts(names: Sequence[str]) -> Callable[[Any], tuple[Any, ...]]:
    """What gives all of a value's fields by one call."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda value: tuple(getattr(value, name) for name in names)


def _default(field: Field[Any]) -> Any:
    """`MISSING` if it has none."""
    return field.default_factory() if field.default_factory is not MISSING else field.default


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
