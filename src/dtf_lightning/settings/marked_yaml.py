"""YAML that knows where each of its values stands, for errors with file, line and column.

Rules that this file guards:
- Every problem is a `SettingsError` that begins with `file:line:column` (both start at 1), also where the text is no YAML.
- A key that stands twice in one mapping is refused: YAML's own reader would drop the first silently.
- A scalar keeps its text as it was written: a version `3.10` is not the number 3.1.
- Anchors, aliases and merge keys (`<<`) work; a value that holds itself is refused, and one that is used many times is
  built once.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dtf_lightning.errors import SettingsError

_MERGE = "tag:yaml.org,2002:merge"
_TEXTS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")
_PLAIN = ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:int", "tag:yaml.org,2002:float", "tag:yaml.org,2002:null")


@dataclass(frozen=True)
class Place:
    """Where something stands in a file; line and column start at 1."""

    file: str
    line: int
    column: int

    def error(self, told: str) -> SettingsError:
        """Return an error about what stands here."""
        return SettingsError(f"{self.file}:{self.line}:{self.column}: {told}")


@dataclass(frozen=True, eq=False)
class Node:
    """One value of a YAML document."""

    value: Any
    """`None`, bool, int, float or text; a list of nodes; or a mapping from text to nodes."""
    text: str
    """A scalar as it was written, without quotes; "" for a list or a mapping."""
    place: Place
    keys: dict[str, Place] = field(default_factory=dict)
    """Of a mapping: where each of its keys stands."""

    @property
    def kind(self) -> str:
        """What it is, in a user's words."""
        if isinstance(self.value, dict):
            return "a mapping"
        if isinstance(self.value, list):
            return "a list"
        return "nothing" if self.value is None else repr(self.value)

    def error(self, told: str) -> SettingsError:
        """Return an error about this value."""
        return self.place.error(told)

    def mapping(self, what: str) -> dict[str, Node]:
        """Return the values of a mapping by their keys. Raises `SettingsError` if it is none."""
        if not isinstance(self.value, dict):
            raise self.error(f"{what} is a mapping (key: value), got {self.kind}")
        return self.value

    def sequence(self, what: str) -> list[Node]:
        """Return the values of a list. Raises `SettingsError` if it is none."""
        if not isinstance(self.value, list):
            raise self.error(f"{what} is a list, got {self.kind}")
        return self.value

    def scalar(self, what: str) -> str:
        """Return a scalar's text as it was written. Raises `SettingsError` if it is a list, a mapping or nothing."""
        if self.value is None:
            raise self.error(f"{what} has no value; write '' for an empty text")
        if isinstance(self.value, dict | list):
            raise self.error(f"{what} is a text or a number, got {self.kind}")
        return self.text

    def refuse_unknown(self, known: Iterable[str], what: str) -> None:
        """Raise `SettingsError` for the first key of a mapping that is not known, with the nearest that is."""
        names = list(known)
        for name in self.mapping(what):
            if name not in names:
                raise self.keys[name].error(f"unknown key {name!r} in {what}{nearest(name, names)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the end of a sentence that says what may have been meant by `name`, or what there is."""
    names = list(known)
    near = difflib.get_close_matches(name, names, 1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}" if names else ""


def read_marked(path: str) -> Node:
    """Return the one document of a YAML file. Raises `SettingsError` that names the file."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read {path}: {error}") from error
    return parse_marked(text, path)


def parse_marked(text: str, file: str) -> Node:
    """Return the one document of a YAML text. `file`: its name, for errors. Raises `SettingsError`."""
    yaml: Any = importlib.import_module("yaml")
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        told = "; ".join(part for part in (error.context, error.problem) if part)
        raise Place(file, mark.line + 1, mark.column + 1).error(f"this is not YAML: {told}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise SettingsError(f"{file}:1:1: this is not YAML: {error or 'it is nested too deeply'}") from error
    if root is None:
        raise SettingsError(f"{file}:1:1: the file is empty")
    try:
        return _Builder(file, loader).build(root)
    except RecursionError:
        raise SettingsError(f"{file}:1:1: this is nested too deeply") from None


class _Builder:
    """Makes nodes of PyYAML's."""

    def __init__(self, file: str, loader: Any) -> None:
        self._file = file
        self._loader = loader
        self._built: dict[int, Node] = {}
        self._open: set[int] = set()

    def build(self, raw: Any) -> Node:
        if (built := self._built.get(id(raw))) is not None:
            return built
        if id(raw) in self._open:
            raise self._place(raw).error("this value holds itself")
        self._open.add(id(raw))
        node = self._node(raw)
        self._open.discard(id(raw))
        self._built[id(raw)] = node
        return node

    def _node(self, raw: Any) -> Node:
        place = self._place(raw)
        if raw.id == "sequence":
            return Node([self.build(one) for one in raw.value], "", place)
        if raw.id == "mapping":
            values, keys = self._mapping(raw)
            return Node(values, "", place, keys)
        if raw.tag in _TEXTS:
            return Node(raw.value, raw.value, place)
        if raw.tag not in _PLAIN:
            raise place.error(f"values of the type {raw.tag.removeprefix('tag:yaml.org,2002:')!r} are not taken here")
        try:
            return Node(self._loader.construct_object(raw), raw.value, place)
        except (ValueError, KeyError) as error:
            raise place.error(f"{raw.value!r} cannot be read: {error}") from error

    def _mapping(self, raw: Any) -> tuple[dict[str, Node], dict[str, Place]]:
        own: dict[str, Node] = {}
        keys: dict[str, Place] = {}
        merged: dict[str, Node] = {}
        places: dict[str, Place] = {}
        for key, value in raw.value:
            place = self._place(key)
            if key.tag == _MERGE:
                for source in self._merged(value):
                    merged = {**source.mapping("what is merged"), **merged}
                    places = {**source.keys, **places}
                continue
            if key.id != "scalar":
                raise place.error("a key is a text, got a list or a mapping")
            if key.value in own:
                raise place.error(f"{key.value!r} stands here twice; the first is in line {keys[key.value].line}")
            own[key.value], keys[key.value] = self.build(value), place
        return {**merged, **own}, {**places, **keys}

    def _merged(self, value: Any) -> list[Node]:
        node = self.build(value)
        return node.value if isinstance(node.value, list) else [node]

    def _place(self, raw: Any) -> Place:
        return Place(self._file, raw.start_mark.line + 1, raw.start_mark.column + 1)
