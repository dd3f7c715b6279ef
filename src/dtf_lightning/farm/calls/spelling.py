"""How a call of a Python function is written: in plans and requests, and as the command of the task that makes it. Pure.

Rule: a call is a command like any other, so that scheduling, retries, gangs and arrays need to know nothing of it. Only a
worker looks at `CallKind`: it puts its own Python in the place of the first word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from dtf_lightning.errors import SettingsError

MODULE = "dtf_lightning.farm.calls"
"""What makes a call, as `python -m` has it."""
PICKLES = ".dtf-call"
"""Folder, in the task's own, of a call that travels by cloudpickle."""
FUNCTION, ARGUMENTS = f"{PICKLES}/function", f"{PICKLES}/arguments"
"""Places of its inputs."""
PICKLED = "--pickled"
"""The word before the number of a call's arguments among those of `ARGUMENTS`."""


class CallKind(StrEnum):
    """How a function comes to the worker."""

    IMPORT = "import"
    """By its name: the worker imports its module."""
    PICKLE = "pickle"
    """By cloudpickle, which lets whoever pickled it run what they like where it is read."""


def check_function(name: str) -> None:
    """Raise `SettingsError` unless this is how a function is named: `package.module:function`."""
    module, colon, function = name.partition(":")
    if not colon or not all(part.isidentifier() for part in (*module.split("."), *function.split("."))):
        raise SettingsError(f"{name!r} names no function; expected package.module:function, such as 'statistics:mean'")


def imported(function: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the command that calls a function by its name, with arguments that JSON can hold.

    Raises `SettingsError` for what names no function, and for what JSON cannot hold.
    """
    check_function(function)
    try:
        told = json.dumps({"args": list(arguments), "kwargs": dict(named)}, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise SettingsError(
            f"the arguments of {function} are not what JSON can hold ({error}): give texts, numbers, lists and dicts of them"
        ) from error
    return "python", "-P", "-m", MODULE, function, told


def pickled(index: int) -> tuple[str, ...]:
    """Return the command that calls the function at `FUNCTION` with the arguments of this number, from 0, at `ARGUMENTS`."""
    return "python", "-P", "-m", MODULE, PICKLED, str(index)


def with_python(command: Sequence[str], python: str) -> tuple[str, ...]:
    """Return a call's command with a worker's own Python, which has this package."""
    return python, *command[1:]
