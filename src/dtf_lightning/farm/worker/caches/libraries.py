"""The caches of tasks' libraries (models, data sets, packages), which lie in the worker's cache folder: what goes first.

A library's files belong together, so whole units go: a model of the Hugging Face hub, a file of torch's, and of whatever
has another shape all that lies in one of its folders.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from dtf_lightning.farm.worker.caches.eviction import Entry, victims
from dtf_lightning.farm.worker.folders import remove_tree

UNITS = ("huggingface/hub/*", "huggingface/*", "torch/hub/checkpoints/*", "torch/hub/*", "torch/*", "git/*", "*")
"""Patterns of units below the cache folder, the finer ones first; what one has matched, or lies around it, is no unit of
a later one."""


def trim(folder: Path, limit: int, *, but: str = "") -> list[str]:
    """Remove the least recently used units until the others have `limit` bytes at most; their paths below the folder.

    `but`: the name of what lies in the folder and is no library's. Call it while no attempt runs: nobody knows which units
    are in use.
    """
    removed = victims((unit for unit in units(folder) if unit.name.split("/")[0] != but), limit)
    for name in removed:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)
    return removed


def units(folder: Path) -> Iterator[Entry]:
    """Every unit with its size, and when any file in it was read or written last."""
    seen: set[Path] = set()
    for pattern in UNITS:
        for path in sorted(folder.glob(pattern)):
            if path not in seen:
                seen |= {path, *path.parents}
                size, used = _measure(path)
                yield Entry(name=path.relative_to(folder).as_posix(), size=size, used=used)


def _measure(path: Path) -> tuple[int, float]:
    size, used = 0, 0.0
    files = [path] if not path.is_dir() else [Path(top, name) for top, _, names in os.walk(path) for name in names]
    for file in files:
        with contextlib.suppress(OSError):
            status = file.lstat()
            size += status.st_size
            used = max(used, status.st_atime, status.st_mtime)
    return size, used
