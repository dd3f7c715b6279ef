"""Files that tests have written on a worker come back to the folder in which pytest was started."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from dtf_lightning.farm.client import Client


def matches(name: str, pattern: str) -> bool:
    """Whether a file lies where a pattern says, as `Path.glob` has it: `**` is any number of folders; a folder means all in it."""
    return _matches(name.split("/"), [part for part in pattern.split("/") if part not in ("", ".")])


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return True  # what stands before was a folder, or the file itself
    if patterns[0] == "**":
        return any(_matches(parts[number:], patterns[1:]) for number in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], patterns[0]) and _matches(parts[1:], patterns[1:])


def bring(farm: Client, task: str, patterns: Sequence[str], folder: Path) -> list[str]:
    """Copy what a task has left below the patterns, unless it is here as it is there; returns what the farm has not kept.

    A file that several tasks have left is that of the one that ended last. Raises what the client raises.
    """
    told = farm.artifacts(task)
    for artifact in told["artifacts"]:
        name = artifact["name"]
        if any(matches(name, pattern) for pattern in patterns) and _digest(folder / name) != artifact["digest"]:
            farm.fetch_artifact(task, name, folder)
    return [str(name) for name in told["missing"]]


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
