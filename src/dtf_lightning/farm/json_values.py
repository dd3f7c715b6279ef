"""Frozen dataclasses as JSON objects: what is written in a farm's record, and what its processes say to each other.

Rules:
- A field that has its default is left out; one that is not known is passed over.
- The types of fields are `str`, `int`, `bool`, `float`, enumerations, dataclasses of these, `tuple[X, ...]`,
  `Mapping[str, X]`, and `X | None`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


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
