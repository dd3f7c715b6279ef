"""The keys of a product's settings, from a file or a command line: read, refused with a suggestion, parsed."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from dtf_lightning.errors import SettingsError
from dtf_lightning.settings.fields import parse

T = TypeVar("T")


class SettingKeys:
    """The settings of several classes as one namespace of keys.

    Args:
        classes: dataclasses of `setting` fields; other fields are no keys.
        foreign: what other programs call some of them, for suggestions.
    """

    def __init__(self, *classes: type[Any], foreign: Mapping[str, str] | None = None) -> None:
        self._of = {cls: {one.name: one for one in fields(cls) if one.metadata} for cls in classes}
        self._fields = {name: one for named in self._of.values() for name, one in named.items()}
        self._foreign = dict(foreign or {})
        self.names = frozenset(self._fields)

    def refuse_unknown(self, name: object, source: str, *, without: frozenset[str] = frozenset()) -> None:
        """Raise `SettingsError` for what is no key. `without`: keys that this source must not have."""
        known = self.names - without
        if name not in known:
            raise SettingsError(
                f"{source}: unknown key {name!r}{self._suggest(str(name), known)}; known keys: {', '.join(sorted(known))}"
            )

    def read_yaml(self, path: Path, *, without: frozenset[str] = frozenset()) -> dict[str, Any]:
        """A settings file's values, as YAML has them. Raises `SettingsError` that names the file."""
        # Not everybody has a settings file. By name, because PyYAML has no type hints of its own.
        yaml: Any = importlib.import_module("yaml")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"cannot read the settings file {path}: {error}") from error
        except yaml.YAMLError as error:
            raise SettingsError(f"the settings file {path} is not YAML: {error}") from error
        if values is None:
            return {}
        if not isinstance(values, dict):
            raise SettingsError(f"{path}: expected a mapping of settings (key: value), got {type(values).__name__}")
        for name in values:
            self.refuse_unknown(name, str(path), without=without)
        return values

    def parse(self, values: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Values in the types of their settings. Raises `SettingsError` that names `source`."""
        return {name: parse(self._fields[name], value, source) for name, value in values.items()}

    def of(self, cls: type[Any], values: Mapping[str, T]) -> dict[str, T]:
        """Those values that are settings of this class."""
        return {name: value for name, value in values.items() if name in self._of[cls]}

    def _suggest(self, name: str, known: frozenset[str]) -> str:
        nearest = (
            [self._foreign[name]] if name in self._foreign else difflib.get_close_matches(name, sorted(known), n=1)
        )
        return f" (did you mean {nearest[0]!r}?)" if nearest else ""
