"""Snapshots for tests, without a training."""

from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dtf_lightning.elastic.checkpoints.storage.local import FileOperations
from dtf_lightning.elastic.rules.resume import Position
from dtf_lightning.elastic.snapshots.format import SnapshotHeader, sizes_of, write_snapshot
from dtf_lightning.elastic.snapshots.packing import Packed, pack


def header(step: int = 1, **changed: Any) -> SnapshotHeader:
    fields: dict[str, Any] = {
        "instance": "run", "signature": "model", "generation": 1, "position": Position(global_step=step),
        "world_size": 1, "reason": "periodic",
    }  # fmt: skip
    return SnapshotHeader(**{**fields, **changed})


def state(step: int = 0, size: int = 10) -> Packed:
    """About `4 * size` bytes, and half a kilobyte."""
    return pack({"step": step, "weight": torch.full((size,), float(step))})


def write(path: Path, content: Any, **changed: Any) -> Path:
    packed = pack(content)
    with path.open("wb") as file:
        write_snapshot(packed, replace(header(**changed), sizes=sizes_of(packed)), file.write)
    return path


class SmallDisk(FileOperations):
    """The file system of `folder` holds `room` bytes; all others have room enough."""

    def __init__(self, folder: Path, room: int) -> None:
        self.folder, self.room = folder, room

    def write(self, file: int, data: memoryview) -> int:
        if not Path(os.readlink(f"/proc/self/fd/{file}")).is_relative_to(self.folder):
            return super().write(file, data)
        used = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        if used + len(data) > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(file, data)
