"""`report`: how a task's Python code reports its metrics. Public as `dtf_lightning.farm.report`; it imports little."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from dtf_lightning import environment


def report(values: Mapping[str, Any] | None = None, /, **more: Any) -> bool:
    """Report metrics of the task that this process belongs to: `report(loss=0.3)` or `report({"loss": 0.3})`.

    Numbers become the task's metrics, the last of each name; anything else that JSON can hold is kept in the file
    `metrics-<process>.jsonl` among the task's artifacts. Each call is one line that is written at once, so that
    processes and threads may report side by side, and what was reported survives the end of the process.

    Returns `False`, and does nothing, outside of a farm: a script runs there as it is.

    Raises `TypeError` for what JSON cannot hold, `OSError` if the file cannot be written.
    """
    folder = environment.read(environment.FARM_RESULTS)
    if folder is None:
        return False
    line = json.dumps({**(values or {}), **more}, default=_plain).encode() + b"\n"
    path = os.path.join(folder, f"metrics-{os.getpid()}.jsonl")
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, line)
    finally:
        os.close(file)
    return True


def _plain(value: object) -> Any:
    """A number of torch or numpy as one of Python's."""
    item = getattr(value, "item", None)
    if callable(item):
        return item()
    raise TypeError(f"report() got {value!r}, which JSON cannot hold; report numbers, texts, lists and dicts of them")
