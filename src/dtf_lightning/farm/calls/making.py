"""Finds a function, calls it, and makes of its value, or of what it raised, what is told of that."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dtf_lightning.farm.calls.returned import MAX_ERROR, MAX_VALUE, VALUE_JSON, as_json

SHOWN = 300
"""Characters of arguments and values that an error repeats."""


class CannotCall(Exception):
    """The call cannot be made, or what it returned cannot be kept: a sentence for whoever wrote the call."""


def told_of(error: BaseException) -> str:
    """Return an exception's type and message."""
    try:
        text = str(error)
    except Exception:  # its own `__str__` raises
        text = ""
    name = type(error).__qualname__
    return short(f"{name}: {text}" if text else name, MAX_ERROR)


def beyond_this_package(error: BaseException) -> Any:
    """Return an exception's traceback from the first frame on that is not ours; all of it where there is none."""
    ours = (str(Path(__file__).parent), importlib.__file__, "<frozen importlib")
    here = error.__traceback__
    while here is not None and here.tb_frame.f_code.co_filename.startswith(ours):
        here = here.tb_next
    return here or error.__traceback__


def find_function(name: str) -> Callable[..., Any]:
    """Return the function `package.module:function`. Raises `CannotCall`, and what the module raises when it is imported."""
    module_name, _, path = name.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # a module that it imports itself
        raise CannotCall(
            f"{name} cannot be called: there is no module {error.name!r} in the task's folder ({os.getcwd()}) or among the "
            f"packages of the worker's Python ({sys.executable}); send the module along, or install it there"
        ) from None
    for part in path.split("."):
        if not hasattr(found, part):
            near = difflib.get_close_matches(part, dir(found), 1)
            where = getattr(found, "__file__", None) or module_name
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise CannotCall(f"{name} cannot be called: there is no {part!r} in {where}{hint}")
        found = getattr(found, part)
    if not callable(found):
        raise CannotCall(f"{name} cannot be called: it is a {type(found).__qualname__}")
    function: Callable[..., Any] = found
    return function


def check_arguments(
    name: str, function: Callable[..., Any], arguments: Sequence[Any], named: Mapping[str, Any]
) -> None:
    """Raise `CannotCall` if a function, whose signature can be known, does not take these arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # a built-in function that has none
        return
    try:
        signature.bind(*arguments, **named)
    except TypeError as error:
        given = ", ".join([*map(repr, arguments), *(f"{key}={value!r}" for key, value in named.items())])
        raise CannotCall(
            f"{name}{short(str(signature), SHOWN)} does not take the arguments ({short(given, SHOWN)}): {error}"
        ) from None


def call_imported(
    name: str, arguments: Sequence[Any], named: Mapping[str, Any], results: Path | None
) -> dict[str, Any]:
    """Call a function by its name; returns what is told of its value. Raises what the function raises, and `CannotCall`."""
    function = find_function(name)
    check_arguments(name, function, arguments, named)
    value = function(*arguments, **named)
    try:
        text = as_json(value) or json.dumps(value, default=_plain, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise CannotCall(
            f"{name} returned a {type(value).__qualname__} that JSON cannot hold ({error}): return texts, numbers, lists and "
            "dicts of them, or write files into $DTF_FARM_RESULTS"
        ) from None
    return keep_json(text, results)


def keep_json(text: str, results: Path | None) -> dict[str, Any]:
    """Return what is told of a value, by its JSON; a long one is left as a file in `results`."""
    if len(text) <= MAX_VALUE or results is None:
        return {"value": json.loads(text)}
    (results / VALUE_JSON).write_text(text)
    return {"artifact": VALUE_JSON}


def _plain(value: object) -> Any:
    """A number of torch or numpy as one of Python's."""
    item = getattr(value, "item", None)
    if callable(item):
        return item()
    raise TypeError(f"{type(value).__qualname__} is none of its types")


def short(text: str, size: int) -> str:
    """Return the first `size` characters of a text, and an ellipsis for the rest."""
    return text if len(text) <= size else f"{text[:size]}..."
