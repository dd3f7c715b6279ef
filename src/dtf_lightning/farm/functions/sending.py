"""What is sent of calls that travel by cloudpickle: files by their digests, and a request for each call. Pure.

Rules that this file guards:
- Nothing of a function or of an argument goes into a request, which goes into etcd: a request names two files and a number.
- The function is one file; the arguments of many calls are one, of `CHUNK` bytes or a little more. So a thousand small calls
  are two files and one submission, and a large argument is sent once and brought to its own call alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dtf_lightning.farm.calls.pickles import joined, pickled

CHUNK = 256 * 1024
"""Bytes of arguments in one file: each of its calls gets a copy of it."""
MAX_NAME = 200
"""Characters."""

Call = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Arguments, and arguments by their names."""


@dataclass(frozen=True)
class PackedCalls:
    """Calls of one function."""

    files: Mapping[str, bytes]
    """Digest -> content; to be sent before the requests."""
    requests: tuple[dict[str, Any], ...]
    """The field `pickled` of each call's `TaskRequest`, in order."""


def name_of(function: Callable[..., Any]) -> str:
    """Return what a function is called, for people."""
    return str(getattr(function, "__qualname__", None) or type(function).__qualname__)[:MAX_NAME]


def pack_calls(function: Callable[..., Any], calls: Iterable[Call]) -> PackedCalls:
    """Return what is sent of calls. Raises `SettingsError` for what cannot be pickled, which it names."""
    name = name_of(function)
    files: dict[str, bytes] = {}
    of_function = _add(files, joined([pickled(f"the function {name}", function)]))
    requests: list[dict[str, Any]] = []
    waiting: list[bytes] = []
    size = 0

    def write() -> None:
        reference = _add(files, joined(waiting))
        requests.extend(
            {"function": of_function, "arguments": reference, "index": index} for index in range(len(waiting))
        )
        waiting.clear()

    for arguments, named in calls:
        waiting.append(pickled(f"an argument of {name}", (arguments, dict(named))))
        size += len(waiting[-1])
        if size >= CHUNK:
            write()
            size = 0
    if waiting:
        write()
    return PackedCalls(files, tuple(requests))


def _add(files: dict[str, bytes], data: bytes) -> str:
    digest = hashlib.sha256(data).hexdigest()
    files[digest] = data
    return f"sha256:{digest}"
