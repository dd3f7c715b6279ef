"""A call's function and arguments in a plan. An argument is what JSON can hold; texts in it may name axes of the matrix."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.calls.spelling import check_function
from dtf_lightning.settings.marked_yaml import Node, parse_marked

_ONE_AXIS = re.compile(r"\{\{\s*matrix\.[^{}]*\}\}")
Fill = Callable[[Node, str], str]
"""Puts an instance's values into a text that stands at a node."""


def function(node: Node, what: str) -> str:
    """Return the name of a function."""
    name = node.scalar(what)
    try:
        check_function(name)
    except SettingsError as error:
        raise node.error(str(error)) from None
    return name


def arguments(node: Node, what: str) -> list[Node]:
    """Return arguments in their order; `filled` makes values of them."""
    return node.sequence(what)


def named_arguments(node: Node, what: str) -> dict[str, Node]:
    """Return arguments by their names."""
    for name in node.mapping(what):
        if not name.isidentifier():
            raise node.keys[name].error(f"{name!r} is no name of an argument")
    return node.mapping(what)


def filled(node: Node, fill: Fill) -> Any:
    """Return the value of an argument. A text that is nothing but one axis is what YAML reads in the axis' value."""
    value = node.value
    if isinstance(value, list):
        return [filled(one, fill) for one in value]
    if isinstance(value, dict):
        return {name: filled(one, fill) for name, one in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise node.error(f"{node.text} is no number that JSON can hold")
    if not isinstance(value, str):
        return value
    text = fill(node, value)
    return _scalar(text) if _ONE_AXIS.fullmatch(value) else text


def _scalar(text: str) -> Any:
    try:
        value = parse_marked(text, "").value
    except SettingsError:
        return text
    return text if isinstance(value, list | dict) else value
