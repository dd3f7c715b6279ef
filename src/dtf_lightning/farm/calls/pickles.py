"""Functions, arguments, values and exceptions that travel by cloudpickle.

A file of them begins with one line of JSON that says which Python wrote it, and how long each of its pickles is; then come
these, one behind the other.

Rule: a pickle is read by the Python that wrote it, up to the second number of its version: the code of a function means
nothing to another one. Both versions are named before anything is unpickled.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cloudpickle

from dtf_lightning.errors import DtfError, SettingsError
from dtf_lightning.farm.calls.making import CannotCall, beyond_this_package, keep_json
from dtf_lightning.farm.calls.returned import EXCEPTION_PICKLE, VALUE_PICKLE, as_json
from dtf_lightning.farm.calls.spelling import ARGUMENTS, FUNCTION

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_MAX_HEAD = 1 << 20


class AnotherPython(DtfError):
    """A pickle was written by a Python of another version. The text names both."""


class RemoteTraceback(Exception):
    """The cause of an exception that a function has raised on a worker: its traceback there."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


# --- files of pickles ------------------------------------------------------------------------------------------------


def pickled(what: str, value: Any) -> bytes:
    """Return a value as a pickle. `what`: it is, for the error. Raises `SettingsError` for what cannot be pickled."""
    try:
        data: bytes = cloudpickle.dumps(value)
    except Exception as error:  # whatever the `__reduce__` of something in it raises
        raise SettingsError(
            f"{what} cannot be pickled ({_words(error)}): it holds something of this process"
        ) from error
    return data


def joined(pickles: Sequence[bytes], python: str = PYTHON) -> bytes:
    """Return pickles as one file."""
    head = json.dumps({"python": python, "sizes": [len(one) for one in pickles]})
    return b"".join((head.encode(), b"\n", *pickles))


def part(data: bytes, index: int, what: str, *, written_by: str, read_by: str) -> bytes:
    """Return one pickle of a file, from 0.

    Args:
        what: is in it, for the error.
        written_by: who wrote it, and `read_by` who reads it, for the error.

    Raises `AnotherPython`, and `DtfError` for what is no such file.
    """
    line, _, rest = data[:_MAX_HEAD].partition(b"\n")
    try:
        head = json.loads(line)
        python, sizes = str(head["python"]), [int(size) for size in head["sizes"]]
        size = sizes[index]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DtfError(f"{what} came as no file of pickles: {line[:80]!r}") from error
    if python != PYTHON:
        raise AnotherPython(
            f"{what} was pickled by Python {python} of {written_by}, and {read_by} has Python {PYTHON}: pickles are read by "
            "the version that wrote them; use the same on both sides, or name the function (`call`)"
        )
    del rest
    start = len(line) + 1 + sum(sizes[:index])
    return data[start : start + size]


# --- on a worker -----------------------------------------------------------------------------------------------------


def call_pickled(index: int, results: Path | None) -> dict[str, Any]:
    """Call the function that lies in this folder with the arguments of a number; returns what is told of its value.

    Raises what the function raises, and `CannotCall`.
    """
    function = _read("the function", FUNCTION, 0)
    arguments, named = _read("the arguments", ARGUMENTS, index)
    value = function(*arguments, **named)
    if (text := as_json(value)) is not None:
        return keep_json(text, results)
    if results is None:
        raise CannotCall(
            "there is no $DTF_FARM_RESULTS for what the function returned: it is called by a farm's worker"
        )
    try:
        data = pickled(f"what {_name(function)} returned, a {type(value).__qualname__},", value)
    except SettingsError as error:
        raise CannotCall(f"{error}; return what can be sent, such as numbers, arrays, or lists of them") from None
    (results / VALUE_PICKLE).write_bytes(joined([data]))
    return {"artifact": VALUE_PICKLE, "python": PYTHON}


def keep_exception(error: Exception, results: Path) -> dict[str, str]:
    """Leave an exception with its traceback as a file, if it comes back from a pickle; returns what is told of that."""
    text = "".join(traceback.format_exception(error.with_traceback(beyond_this_package(error))))
    try:
        data = cloudpickle.dumps((error, text))
        cloudpickle.loads(data)  # many an exception can be pickled and not be made again
    except Exception:
        return {}
    (results / EXCEPTION_PICKLE).write_bytes(joined([data]))
    return {"artifact": EXCEPTION_PICKLE, "python": PYTHON}


def _read(what: str, place: str, index: int) -> Any:
    try:
        data = part(Path(place).read_bytes(), index, what, written_by="the client", read_by="this worker")
    except (DtfError, OSError) as error:
        raise CannotCall(str(error)) from error
    try:
        return cloudpickle.loads(data)
    except ModuleNotFoundError as error:
        raise CannotCall(
            f"{what} cannot be unpickled: there is no module {error.name!r} in the task's folder ({os.getcwd()}) or among the "
            f"packages of the worker's Python ({sys.executable}); send the module along (`options(source=...)`), install it "
            "there, or see cloudpickle.register_pickle_by_value"
        ) from error


# --- at a client -----------------------------------------------------------------------------------------------------


def unpickle(data: bytes, what: str) -> Any:
    """Return what a file of one pickle holds, that a worker has left. `what`: it is, for the error.

    Raises `AnotherPython`, and `DtfError` for what cannot be read.
    """
    one = part(data, 0, what, written_by="the worker", read_by="this client")
    try:
        return cloudpickle.loads(one)
    except Exception as error:
        raise DtfError(f"{what} cannot be unpickled here: {_words(error)}") from error


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _words(error: BaseException) -> str:
    return f"{type(error).__qualname__}: {error}" if str(error) else type(error).__qualname__
