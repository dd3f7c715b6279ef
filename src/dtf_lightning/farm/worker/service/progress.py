"""What attempts that run have reported so far: of parts of trainings, the file that their torchrun keeps up to date."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from pathlib import Path

from dtf_lightning.farm.trainings.launch import PROGRESS_FILE
from dtf_lightning.farm.worker.results import numbers

MAX_BYTES = 4096
"""Of such a file; a script may write another of that name."""
MAX_NUMBERS = 10


def reported(running: Iterable[tuple[str, Path]]) -> dict[str, dict[str, float]]:
    """Return what each task has reported whose attempt has such a file. Reads from the disk.

    Args:
        running: tasks, and the folders of what their attempts report.
    """
    found: dict[str, dict[str, float]] = {}
    for task, folder in running:
        unreadable = contextlib.suppress(OSError, ValueError, AttributeError, RecursionError)
        with unreadable, (folder / PROGRESS_FILE).open("rb") as file:
            told = dict(numbers(json.loads(file.read(MAX_BYTES))))
            found[task] = dict(list(told.items())[:MAX_NUMBERS])
    return found
