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
from types import MemberDescriptorType, NoneType, UnionType
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

    Raises `ValueError`, `TypeError`, `KeyError` or `AttributeError` for one that does not fit.
    """
    made: T = _plan(cls).from_json(body)
    return made


# --- how one class is written and read -------------------------------------------------------------------------------
# Python writes two functions for each class, as `dataclasses` does for `__init__`: a loop over fields and steps, which was
# here before, took three times as long, and was a tenth of what a small task costs a coordinator.


class _Plan:
    """How one dataclass is written and read; made once for each class."""

    def __init__(self, cls: type) -> None:
        self._hints = get_type_hints(cls)
        self._names: dict[str, Any] = {"cls": cls, "new": cls.__new__, "wrong": _wrong, "MISSING": MISSING}
        """What the two functions know by name."""
        named = sorted(fields(cls), key=attrgetter("name"))
        self.to_json: Callable[[Any], dict[str, Any]] = self._made("to_json", "value", self._writing(named))
        self.from_json: Callable[[Any], Any] = self._made("from_json", "body", self._reading(cls, named))

    def _made(self, name: str, argument: str, lines: Sequence[str]) -> Any:
        exec("\n    ".join([f"def {name}({argument}):", *lines]), self._names)
        return self._names[name]

    def _called(self, value: Any) -> str:
        """Return a name of this value in the functions."""
        name = f"known_{len(self._names)}"
        self._names[name] = value
        return name

    def _writing(self, named: Sequence[Field[Any]]) -> list[str]:
        lines = ["body = {}"]
        for field in named:
            told = f"body[{field.name!r}] = {self._written(self._hints[field.name], 'part')}"
            lines.append(f"part = value.{field.name}")
            if (default := _default(field)) is not MISSING:
                known = self._called(default)
                told = f"if part is not {known} and part != {known}: {told}"
            lines.append(told)
        return [*lines, "return body"]

    def _reading(self, cls: type, named: Sequence[Field[Any]]) -> list[str]:
        """Values of a class with slots are made slot by slot: `__init__` of a frozen one goes the long way for each."""
        slots: list[Any] = [cls.__dict__.get(field.name) for field in named]
        in_slots = all(isinstance(slot, MemberDescriptorType) for slot in slots) and not hasattr(cls, "__post_init__")
        lines = ["get = body.get", "made = new(cls)" if in_slots else "parts = {}"]
        for field, slot in zip(named, slots, strict=True):
            lines.append(f"part = get({field.name!r}, MISSING)")
            if field.default_factory is not MISSING:
                absent = f"{self._called(field.default_factory)}()"
            elif field.default is not MISSING:
                absent = self._called(field.default)
            else:
                absent = f"{self._called(_missing)}(cls, {field.name!r})"
            told = f"{absent} if part is MISSING else {self._read(self._hints[field.name], 'part')}"
            if in_slots:
                lines.append(f"{self._called(slot.__set__)}(made, {told})")
            else:
                lines.append(f"parts[{field.name!r}] = {told}")
        return [*lines, "return made" if in_slots else "return cls(**parts)"]

    # --- expressions that turn a value, which stands there by its name, into JSON or back ------------------------------

    def _written(self, hint: Any, name: str) -> str:
        origin, arguments = get_origin(hint), get_args(hint)
        if origin in (Union, UnionType):
            return f"(None if {name} is None else {self._written(_but_none(arguments), name)})"
        if origin is tuple:
            return f"[{self._written(arguments[0], name + '_')} for {name}_ in {name}]"
        if origin is Mapping:
            inner = self._written(arguments[1], name + "_")
            return f"{{{name}_key: {inner} for {name}_key, {name}_ in {name}.items()}}"
        if isinstance(hint, type) and issubclass(hint, Enum):
            return f"{name}._value_"
        if is_dataclass(hint):
            return f"{self._called(to_json)}({name})"
        if hint is float:
            return f"float({name})"
        return _exactly(hint, name)

    def _read(self, hint: Any, name: str) -> str:
        origin, arguments = get_origin(hint), get_args(hint)
        if origin in (Union, UnionType):
            return f"(None if {name} is None else {self._read(_but_none(arguments), name)})"
        if origin is tuple:
            return f"tuple([{self._read(arguments[0], name + '_')} for {name}_ in {_exactly(list, name)}])"
        if origin is Mapping:
            inner = self._read(arguments[1], name + "_")
            return f"{{{name}_key: {inner} for {name}_key, {name}_ in {_exactly(dict, name)}.items()}}"
        if isinstance(hint, type) and issubclass(hint, Enum):
            members = {member.value: member for member in hint}
            return f"({self._called(members)}.get({name}) or {self._called(hint)}({name}))"
        if is_dataclass(hint):
            return f"{self._called(from_json)}({self._called(hint)}, {_exactly(dict, name)})"
        if hint is float:
            return f"({name} if type({name}) is float else {self._called(_number)}({name}))"
        return _exactly(hint, name)


def _default(field: Field[Any]) -> Any:
    """`MISSING` if it has none."""
    return field.default_factory() if field.default_factory is not MISSING else field.default


def _plan(cls: type) -> _Plan:
    plan = _PLANS.get(cls)
    if plan is None:
        plan = _PLANS[cls] = _Plan(cls)
    return plan


_PLANS: dict[type, _Plan] = {}


def _but_none(arguments: Sequence[Any]) -> Any:
    (inner,) = (argument for argument in arguments if argument is not NoneType)
    return inner


def _exactly(wanted: type, name: str) -> str:
    assert wanted in (str, int, bool, list, dict), wanted
    return f"({name} if type({name}) is {wanted.__name__} else wrong({wanted.__name__}, {name}))"


def _wrong(wanted: type, value: Any) -> Any:
    raise TypeError(f"expected {wanted.__name__}, got {value!r}")


def _missing(cls: type, name: str) -> Any:
    raise TypeError(f"{cls.__name__} without {name!r}")


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise TypeError(f"expected a number, got {value!r}")
    return float(value)
