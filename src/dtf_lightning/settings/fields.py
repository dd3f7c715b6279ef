"""Fields of settings: each knows its unit and meaning, for error messages and for the docs.

A product's settings are frozen, keyword-only dataclasses of such fields, checked in `__post_init__`: `check_types`
first, then a `check` for each rule. Types are `int`, `float`, `bool`, `str`, and each of them `| None`.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from typing import Any

from dtf_lightning.errors import SettingsError


def setting(default: Any, doc: str, *, unit: str = "", secret: bool = False, item: type[Any] | None = None) -> Any:
    """A field of settings. `MISSING` for one without a default. A secret one's value is not shown.

    `item`: of a tuple whose members are settings themselves, their class.
    """
    metadata = {"doc": doc, "unit": unit, "secret": secret, "item": item}
    if default is MISSING:
        return field(metadata=metadata)
    return field(default=default, metadata=metadata)


def check(condition: bool, message: str) -> None:
    """Raise `SettingsError` with this message unless the condition holds."""
    if not condition:
        raise SettingsError(message)


def check_types(settings: Any) -> None:
    """Refuse what no later check could judge: a wrong type, NaN, infinity. Raises `SettingsError`."""
    for one in fields(settings):
        value = getattr(settings, one.name)
        kind = str(one.type).removesuffix(" | None")
        if value is None and kind != str(one.type):
            continue
        if kind == "int":
            check(type(value) is int, f"{one.name} must be a whole number, got {value!r}")
        elif kind == "float":
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            check(number, f"{one.name} must be a finite number, got {value!r}")
        elif kind == "bool":
            check(isinstance(value, bool), f"{one.name} must be True or False, got {value!r}")


_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def parse(one: Field[Any], value: Any, source: str) -> Any:
    """The value in the field's type; strings come from the command line. Raises `SettingsError` that names `source`."""
    kind = str(one.type)
    if value is None and kind.endswith("| None"):
        return None
    try:
        if kind == "bool":
            return value if isinstance(value, bool) else _WORDS[str(value).strip().lower()]
        if kind.startswith("int") and not isinstance(value, bool | float):
            return int(value)
        if kind.startswith("float") and not isinstance(value, bool):
            return float(value)
        if kind.startswith("str") and isinstance(value, str):
            return value
    except (KeyError, ValueError, TypeError):
        pass
    expected = {"bool": "true or false", "int": "a whole number", "float": "a number"}.get(
        kind.removesuffix(" | None"), "text"
    )
    unit = f" of {one.metadata['unit']}" if one.metadata["unit"] and kind in ("int", "float") else ""
    raise SettingsError(f"{source}: {one.name} must be {expected}{unit}, got {value!r}")


@dataclass(frozen=True, kw_only=True)
class SettingDoc:
    """One setting, for people."""

    name: str
    type: str
    default: str
    """As one would write it; `required` without one."""
    unit: str
    doc: str


def setting_docs(cls: type[Any]) -> list[SettingDoc]:
    """Every setting of a class with its meaning, in their order; fields that are no settings are left out.

    Those of a list's members follow it, as `list[].key`.
    """
    docs = []
    for one in fields(cls):
        if not one.metadata:
            continue
        item = one.metadata["item"]
        docs.append(_doc(one, "list" if item is not None else str(one.type).removesuffix(" | None")))
        if item is not None:
            docs += [replace(doc, name=f"{one.name}[].{doc.name}") for doc in setting_docs(item)]
    return docs


def _doc(one: Field[Any], kind: str) -> SettingDoc:
    return SettingDoc(
        name=one.name,
        type=kind,
        default="required" if one.default is MISSING else _written(one.default),
        unit=one.metadata["unit"],
        doc=one.metadata["doc"],
    )


def settings_table(cls: type[Any]) -> list[str]:
    """The settings of a class as a Markdown table."""
    return [
        "| key | type | default | unit | meaning |",
        "|---|---|---|---|---|",
        *(
            f"| `{doc.name}` | {doc.type} | {doc.default} | {doc.unit or '-'} | {doc.doc} |"
            for doc in setting_docs(cls)
        ),
    ]


def _written(value: Any) -> str:
    if value is None or value in ((), ""):
        return "none"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # not 2.592e+06
    return f"{value:g}" if isinstance(value, float) else str(value)
