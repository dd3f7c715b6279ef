"""Settings files of several sections, each a dataclass of settings: read with places, merged with what a command was given.

    server:
      port: 8080
      token_file: ${HOME}/farm.token

Rules that this file guards:
- A problem is said with file, line and column, and an unknown key with the nearest that is known.
- What a command was given wins over the file, and what it wins over is not looked at: a variable need not be set for it.
- `${NAME}` in a text stands for an environment variable; one that is not set is an error at its place.
- What has the unit seconds may be written as `90s`, `5m`, `1h30m` or `7d`.
- A key that another program has and that means nothing here is accepted with one warning for each thing that replaces it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, Self, get_type_hints

from dtf_lightning import environment
from dtf_lightning.errors import SettingsError
from dtf_lightning.settings.durations import seconds_of
from dtf_lightning.settings.fields import parse
from dtf_lightning.settings.marked_yaml import Node, Place, nearest, read_marked

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Lookup = Callable[[str], str | None]
"""Returns an environment variable, or `None` for one that is not set."""


@dataclass(frozen=True, kw_only=True)
class ReadSections:
    """What a file and a command's options say together."""

    sections: Mapping[str, Any]
    """Name -> an instance of its class."""
    warnings: tuple[str, ...]


def read_sections(
    path: Path | None,
    classes: Mapping[str, type[Any]],
    *,
    lookup: Lookup,
    given: Mapping[str, Any],
    without_effect: Mapping[str, str],
) -> ReadSections:
    """Return every section, from its defaults, the file and what was given. Raises `SettingsError`.

    Args:
        path: of the file; `None`: there is none.
        classes: section -> its dataclass of settings, all of which have defaults.
        lookup: of environment variables.
        given: `section.key` -> a value that wins over the file; `None` is none.
        without_effect: `section.key`, or `section.*` for all other keys of a section -> what takes their place here, as
            the end of a sentence.
    """
    root = _Root(path)
    foreign = {name.partition(".")[0] for name in without_effect}
    root.refuse_unknown_sections([*classes, *sorted(foreign - classes.keys())])
    moot: dict[str, list[tuple[str, Place]]] = {}
    read = {}
    for section in dict.fromkeys([*classes, *sorted(foreign)]):
        settings = {one.name: one for one in fields(classes[section])} if section in classes else {}
        own = {key: value for key in settings if (value := given.get(f"{section}.{key}")) is not None}
        keys = root.section(section)
        values = {}
        for key, (node, place) in keys.items():
            if key in settings:
                if key not in own:
                    values[key] = _value(settings[key], node, lookup)
                continue
            instead = without_effect.get(f"{section}.{key}", without_effect.get(f"{section}.*"))
            if instead is None:
                raise place.error(
                    f"unknown key {key!r} in {section}{nearest(key, _known(section, settings, without_effect))}"
                )
            moot.setdefault(instead, []).append((f"{section}.{key}", place))
        if section in classes:
            read[section] = _made(classes[section], {**values, **own}, keys)
    in_order = sorted(moot.items(), key=lambda item: item[1][0][1].line)
    return ReadSections(sections=read, warnings=tuple(_warning(names, instead) for instead, names in in_order))


@dataclass(frozen=True, kw_only=True)
class SettingsFile:
    """All settings of a program. Subclasses have a field for each section, whose type is the section's class."""

    without_effect: ClassVar[Mapping[str, str]] = {}
    """As for `read_sections`."""
    warnings: tuple[str, ...] = ()
    """About keys of the file that mean nothing here."""
    beside: Path = field(default_factory=Path)
    """What relative paths are relative to."""

    def path(self, told: str) -> Path:
        """Return a path of the settings as an absolute one."""
        return self.beside.absolute() / told

    @classmethod
    def sections(cls) -> dict[str, type[Any]]:
        """Section -> its dataclass."""
        types = get_type_hints(cls)
        return {one.name: types[one.name] for one in fields(cls) if one.name not in ("warnings", "beside")}

    @classmethod
    def load(cls, path: Path | None = None, given: Mapping[str, Any] | None = None) -> Self:
        """Return what a file says, and a command's options, which win. Raises `SettingsError` that says where.

        `given`: `section.key` -> value; `None` is none.
        """
        read = read_sections(
            path, cls.sections(), lookup=environment.read, given=given or {}, without_effect=cls.without_effect
        )
        return cls(**read.sections, warnings=read.warnings, beside=path.parent if path is not None else Path())


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


def _known(section: str, settings: Mapping[str, Any], without_effect: Mapping[str, str]) -> list[str]:
    foreign = [name.partition(".")[2] for name in without_effect if name.startswith(f"{section}.")]
    return [*settings, *foreign]


def _value(one: Field[Any], node: Node, lookup: Lookup) -> Any:
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
        if one.metadata["unit"] == "seconds":
            value = seconds_of(value) or value
    return parse(one, value, f"{node.place.file}:{node.place.line}:{node.place.column}")


def _made(cls: type[Any], values: Mapping[str, Any], keys: Mapping[str, tuple[Node, Place]]) -> Any:
    try:
        return cls(**values)
    except SettingsError as error:
        # A check's message begins with the key that it is about.
        key = str(error).partition(" ")[0]
        if key in keys:
            raise keys[key][0].error(str(error)) from error
        raise


def _warning(names: list[tuple[str, Place]], instead: str) -> str:
    first = names[0][1]
    told = ", ".join(name for name, _ in names)
    return f"{first.file}:{first.line}: {told} {'has' if len(names) == 1 else 'have'} no effect here: {instead}"
