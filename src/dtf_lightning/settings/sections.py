"""Settings files of several sections, each a dataclass of settings: read with places, merged with what a command was given.

    server:
      port: 8080
      token_file: ${HOME}/farm.token

Rules that this file guards:
- A problem is said with file, line and column, and an unknown key with the nearest that is known.
- What a command was given wins over the file, and what it wins over is not looked at: a variable need not be set for it.
- `${NAME}` in a text stands for an environment variable; one that is not set is an error at its place.
- A variable that a program names for one of its keys wins over the file, and an option over it.
- What has the unit seconds may be written as `90s`, `5m`, `1h30m` or `7d`.
- A key may hold a list of mappings, each of which has the keys of a dataclass of settings of its own.
- A key that another program has and that means nothing here is accepted with one warning for each thing that replaces it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self, get_type_hints

from dtf_lightning import environment
from dtf_lightning.errors import SettingsError
from dtf_lightning.settings.durations import seconds_of
from dtf_lightning.settings.fields import parse
from dtf_lightning.settings.marked_yaml import Node, Place, nearest, read_marked

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

OPTION = "option"
"""The origin of what a command was given."""

Lookup = Callable[[str], str | None]
"""Returns an environment variable, or `None` for one that is not set."""


@dataclass(frozen=True, kw_only=True)
class ReadSections:
    """What a file and a command's options say together."""

    sections: Mapping[str, Any]
    """Name -> an instance of its class."""
    warnings: tuple[str, ...]
    origins: Mapping[str, str]
    """`section.key` -> where its value is from, as a person would name it; a default has none."""
    secret_variables: frozenset[str]
    """Environment variables that hold the value of a secret key, or a part of it."""


def read_sections(
    path: Path | None,
    classes: Mapping[str, type[Any]],
    *,
    lookup: Lookup,
    given: Mapping[str, Any],
    without_effect: Mapping[str, str],
    variables: Mapping[str, str] | None = None,
) -> ReadSections:
    """Return every section, from its defaults, the file, the environment and what was given. Raises `SettingsError`.

    Args:
        path: of the file; `None`: there is none.
        classes: section -> its dataclass of settings, all of which have defaults.
        lookup: of environment variables.
        given: `section.key` -> a value that wins over the file; `None` is none.
        without_effect: `section.key`, or `section.*` for all other keys of a section -> what takes their place here, as
            the end of a sentence.
        variables: environment variable -> the `section.key` that it stands for.
    """
    foreign = {name.partition(".")[0] for name in without_effect}
    root = _Root(path)
    root.refuse_unknown_sections([*classes, *sorted(foreign - classes.keys())])
    reader = _Reader(root, lookup, given, without_effect, variables or {})
    for section in dict.fromkeys([*classes, *sorted(foreign)]):
        reader.read(section, classes.get(section))
    return reader.finish()


@dataclass(frozen=True, kw_only=True)
class SettingsFile:
    """All settings of a program. Subclasses have a field for each section, whose type is the section's class."""

    without_effect: ClassVar[Mapping[str, str]] = {}
    """As for `read_sections`."""
    variables: ClassVar[Mapping[str, str]] = {}
    """As for `read_sections`."""
    warnings: tuple[str, ...] = ()
    """About keys of the file that mean nothing here."""
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    """As of `ReadSections`."""
    secret_variables: frozenset[str] = field(default=frozenset(), compare=False)
    """As of `ReadSections`."""
    beside: Path = field(default_factory=Path)
    """What relative paths are relative to."""

    def path(self, told: str) -> Path:
        """Return a path of the settings as an absolute one."""
        return self.beside.absolute() / told

    @classmethod
    def sections(cls) -> dict[str, type[Any]]:
        """Section -> its dataclass."""
        types = get_type_hints(cls)
        return {one.name: types[one.name] for one in fields(cls) if one.name not in _NO_SECTIONS}

    @classmethod
    def load(cls, path: Path | None = None, given: Mapping[str, Any] | None = None) -> Self:
        """Return what a file says, and a command's options, which win. Raises `SettingsError` that says where.

        `given`: `section.key` -> value; `None` is none.
        """
        read = read_sections(
            path,
            cls.sections(),
            lookup=environment.read,
            given=given or {},
            without_effect=cls.without_effect,
            variables=cls.variables,
        )
        return cls(
            **read.sections,
            warnings=read.warnings,
            origins=read.origins,
            secret_variables=read.secret_variables,
            beside=path.parent if path is not None else Path(),
        )


_NO_SECTIONS = ("warnings", "origins", "secret_variables", "beside")


def variables_in(text: str) -> set[str]:
    """Return the names of the environment variables that a text of settings names."""
    return set(_VARIABLE.findall(text))


def expanded(text: str, place: Place, lookup: Lookup) -> str:
    """Return a text with its `${NAME}`s replaced. Raises `SettingsError` for a variable that is not set."""

    def value(found: re.Match[str]) -> str:
        name = found.group(1)
        if not _NAME.fullmatch(name):
            raise place.error(f"{found.group(0)!r} names no environment variable; expected one such as ${{HOME}}")
        told = lookup(name)
        if told is None:
            raise place.error(f"the environment variable {name} is not set: set it, or write its value here")
        return told

    return _VARIABLE.sub(value, text)


class _Root:
    """A file, or none."""

    def __init__(self, path: Path | None) -> None:
        self._root: Node | None = read_marked(str(path)) if path is not None else None

    def refuse_unknown_sections(self, known: list[str]) -> None:
        if self._root is not None:
            self._root.refuse_unknown(known, "the settings")

    def section(self, name: str) -> dict[str, tuple[Node, Place]]:
        """Key -> its value, and where the key stands."""
        if self._root is None or (node := self._root.value.get(name)) is None or node.value is None:
            return {}
        return {key: (value, node.keys[key]) for key, value in node.mapping(name).items()}


class _Reader:
    """Reads one section after the other."""

    def __init__(
        self,
        root: _Root,
        lookup: Lookup,
        given: Mapping[str, Any],
        without_effect: Mapping[str, str],
        variables: Mapping[str, str],
    ) -> None:
        self._root = root
        self._lookup = lookup
        self._given = {name: value for name, value in given.items() if value is not None}
        self._without_effect = without_effect
        self._variables = {
            key: name for name, key in variables.items() if key not in self._given and lookup(name) is not None
        }
        self._sections: dict[str, Any] = {}
        self._moot: dict[str, list[_Moot]] = {}
        self._origins: dict[str, str] = {}
        self._secret: set[str] = set()

    def read(self, section: str, cls: type[Any] | None) -> None:
        """`cls`: of its settings; `None`: all its keys mean nothing here."""
        settings = {one.name: one for one in fields(cls)} if cls is not None else {}
        keys = self._root.section(section)
        values = {key: self._own(f"{section}.{key}", one) for key, one in settings.items()}
        for key, (node, place) in keys.items():
            if key not in settings:
                self._take_moot(section, key, place, settings)
            elif values[key] is None:
                values[key] = self._from_file(f"{section}.{key}", settings[key], node, place)
        for name, variable in self._variables.items():
            if name in self._without_effect and name.startswith(f"{section}."):
                self._moot.setdefault(self._without_effect[name], []).append(_Moot(name, f"${variable}"))
        if cls is not None:
            told = {key: value for key, value in values.items() if f"{section}.{key}" in self._origins}
            self._sections[section] = self._made(cls, section, told, keys)

    def finish(self) -> ReadSections:
        in_order = sorted(self._moot.items(), key=lambda item: item[1][0].line)
        return ReadSections(
            sections=self._sections,
            warnings=tuple(_warning(keys, instead) for instead, keys in in_order),
            origins=self._origins,
            secret_variables=frozenset(self._secret),
        )

    def _own(self, name: str, one: Field[Any]) -> Any:
        """The value that wins over the file; `None`: there is none."""
        if name in self._given:
            self._origins[name] = OPTION
            return self._given[name]
        variable = self._variables.get(name)
        if variable is None:
            return None
        self._origins[name] = f"${variable}"
        self._secret |= {variable} if one.metadata["secret"] else set()
        return _parsed(one, self._lookup(variable), f"${variable}")

    def _from_file(self, name: str, one: Field[Any], node: Node, place: Place) -> Any:
        self._origins[name] = f"{place.file}:{place.line}"
        self._secret |= _secret_variables(one, node)
        return _value(one, node, self._lookup)

    def _take_moot(self, section: str, key: str, place: Place, settings: Mapping[str, Any]) -> None:
        name = f"{section}.{key}"
        instead = self._without_effect.get(name, self._without_effect.get(f"{section}.*"))
        if instead is None:
            known = _known(section, settings, self._without_effect)
            raise place.error(f"unknown key {key!r} in {section}{nearest(key, known)}")
        self._moot.setdefault(instead, []).append(_Moot(name, f"{place.file}:{place.line}", place.line))

    def _made(
        self, cls: type[Any], section: str, values: Mapping[str, Any], keys: Mapping[str, tuple[Node, Place]]
    ) -> Any:
        try:
            return cls(**values)
        except SettingsError as error:
            # A check's message begins with the key that it is about.
            key = str(error).partition(" ")[0]
            origin = self._origins.get(f"{section}.{key}", "")
            if origin.startswith("$"):
                raise SettingsError(f"{origin}: {error}") from error
            if key in keys and origin != OPTION:
                raise keys[key][0].error(str(error)) from error
            raise


def _known(section: str, settings: Mapping[str, Any], without_effect: Mapping[str, str]) -> list[str]:
    foreign = [name.partition(".")[2] for name in without_effect if name.startswith(f"{section}.")]
    return [*settings, *foreign]


def _secret_variables(one: Field[Any], node: Node) -> set[str]:
    """The variables that hold a secret, or a part of it."""
    if (item := one.metadata["item"]) is not None:
        each = {inner.name: inner for inner in fields(item)}
        return {
            name
            for member in (node.value if isinstance(node.value, list) else [])
            for key, value in (member.value.items() if isinstance(member.value, dict) else [])
            if key in each
            for name in _secret_variables(each[key], value)
        }
    return variables_in(node.text) if one.metadata["secret"] else set()


def _item(cls: type[Any], what: str, node: Node, lookup: Lookup) -> Any:
    """One member of a list of settings."""
    settings = {one.name: one for one in fields(cls)}
    node.refuse_unknown(settings, what)
    told = {key: _value(settings[key], value, lookup) for key, value in node.value.items()}
    missing = [name for name, one in settings.items() if one.default is MISSING and name not in told]
    if missing:
        raise node.error(f"{what} needs {missing[0]}: {settings[missing[0]].metadata['doc']}")
    try:
        return cls(**told)
    except SettingsError as error:
        # A check's message begins with the key that it is about.
        key = str(error).partition(" ")[0]
        raise (node.keys[key].error if key in node.keys else node.error)(str(error)) from error


def _value(one: Field[Any], node: Node, lookup: Lookup) -> Any:
    if (item := one.metadata["item"]) is not None:
        what = f"each of {one.name}"
        return tuple(_item(item, what, each, lookup) for each in node.sequence(one.name))
    if str(one.type).startswith("tuple"):
        nodes = node.value if isinstance(node.value, list) else [node]
        return tuple(expanded(each.scalar(f"each of {one.name}"), each.place, lookup) for each in nodes)
    value = node.value
    if isinstance(value, dict | list):
        raise node.error(f"{one.name} is a text or a number, got {node.kind}")
    if str(one.type).startswith("str") and value is not None:
        value = node.text  # a name `12` or a version `1.10` is a text here
    if isinstance(value, str):
        value = expanded(value, node.place, lookup)
    return _parsed(one, value, f"{node.place.file}:{node.place.line}:{node.place.column}")


def _parsed(one: Field[Any], value: Any, source: str) -> Any:
    if isinstance(value, str) and one.metadata["unit"] == "seconds":
        seconds = seconds_of(value)
        value = value if seconds is None else seconds
    return parse(one, value, source)


@dataclass(frozen=True)
class _Moot:
    """A key that means nothing here, and where it was given."""

    name: str
    where: str
    line: float = math.inf


def _warning(keys: list[_Moot], instead: str) -> str:
    told = ", ".join(key.name for key in keys)
    return f"{keys[0].where}: {told} {'has' if len(keys) == 1 else 'have'} no effect here: {instead}"
