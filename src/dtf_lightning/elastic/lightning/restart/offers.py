"""These functions list the states that a rank can offer after a restart: its node's snapshots, the run's checkpoints.

Private API touched here: `BestCheckpoints._location`.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dtf_lightning.elastic.checkpoints.formats import load_verified
from dtf_lightning.elastic.checkpoints.manifest import load as load_manifest
from dtf_lightning.elastic.checkpoints.record import Record
from dtf_lightning.elastic.checkpoints.storage.interface import Storage
from dtf_lightning.elastic.checkpoints.storage.opening import open_storage
from dtf_lightning.elastic.lightning.callbacks.best_checkpoints import BestCheckpoints
from dtf_lightning.elastic.lightning.host.names import ModelCheckpoint
from dtf_lightning.elastic.lightning.restart.former_life import Misfit, first_difference
from dtf_lightning.elastic.lightning.restart.membership import RestartedRun
from dtf_lightning.elastic.rules.resume import LoopPhase, Position
from dtf_lightning.elastic.snapshots.choice import Offer, SourceKind
from dtf_lightning.elastic.snapshots.format import read_snapshot
from dtf_lightning.errors import CheckpointError

log = logging.getLogger("dtf_lightning")

NUM_FILES = 3
"""Number of checkpoint files read per folder, newest first: without a manifest only its content tells a file's step."""

Read = Callable[[], dict[str, Any]]
"""Function that reads an offered state. Raises `OSError` or `DtfError` for a damaged one."""


def checkpoint_folders(callbacks: Iterable[Any]) -> list[str]:
    """Return the folders to which these callbacks save checkpoints."""
    found = []
    for callback in callbacks:
        if isinstance(callback, BestCheckpoints):
            found.append(callback.location)
        elif isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            found.append(str(callback.dirpath))
    return found


def snapshots(run: RestartedRun, rank: int) -> Iterator[tuple[Offer, Read]]:
    """Yield the node's snapshots of this run that fit its model, each with its reader."""
    for stored in run.node.stored():
        header, path = stored.header, stored.path
        if (header.instance, header.signature) == (run.generation.instance, run.signature):
            offer = Offer(rank=rank, kind=SourceKind.SNAPSHOT, position=header.position, where=str(path))
            yield offer, partial(_load_snapshot, path)


def misfit(run: RestartedRun) -> Misfit | None:
    """Return the node's newest snapshot of this run that does not fit its model; `None` if all do."""
    own = [stored for stored in run.node.stored() if stored.header.instance == run.generation.instance]
    others = [stored for stored in own if stored.header.signature != run.signature]
    newest = max(others, key=lambda stored: stored.header.position, default=None)
    if newest is None:
        return None
    header = newest.header
    difference = first_difference(header.parts, run.parts)
    return Misfit(position=header.position, where=str(newest.path), difference=difference)


def checkpoints(run: RestartedRun, rank: int, callbacks: Iterable[Any]) -> Iterator[tuple[Offer, Read]]:
    """Yield the run's own checkpoints, from the folders to which any life of it has saved, each with its reader."""
    instance = run.generation.instance
    runs = {instance, *(c.run for c in callbacks if isinstance(c, BestCheckpoints) and c.run)}
    for folder in run.record.checkpoint_folders:
        for position, where, read in _in_folder(folder, instance, runs):
            yield Offer(rank=rank, kind=SourceKind.CHECKPOINT, position=position, where=where), read


def _in_folder(folder: str, instance: str, runs: set[str]) -> Iterator[tuple[Position, str, Read]]:
    storage = open_storage(folder)
    listed = set()
    for run in sorted(runs):
        try:
            manifest = load_manifest(storage, run).manifest
        except OSError as error:
            log.warning("the checkpoints in %s cannot be listed: %s", folder, error)
            continue
        for record in manifest.records if manifest is not None else ():
            listed.add(record.name)
            if not record.suspect and record.parts:
                yield _saved_at(record.step), storage.location(record.name), partial(_load_listed, storage, record)
    yield from _plain_checkpoints(Path(folder), instance, listed)


def _plain_checkpoints(folder: Path, instance: str, listed: set[str]) -> Iterator[tuple[Position, str, Read]]:
    """Yield the newest checkpoint files of this run that no manifest lists: position, path and reader."""
    try:
        files = sorted(
            (path for path in folder.glob("*.ckpt") if path.is_file() and path.name not in listed),
            key=lambda path: path.stat().st_mtime,
            reverse=True,
        )
    except OSError:  # another process removes them meanwhile, or it is not a local folder
        return
    for path in files[:NUM_FILES]:
        try:
            content = torch.load(path, map_location="cpu", weights_only=False, mmap=True)
            written_by = content["callbacks"]["ElasticCallback"]["instance"]
            step = int(content["global_step"])
        except Exception as error:  # a damaged, foreign or older file may raise anything
            log.debug("%s is no checkpoint of this run: %r", path, error)
            continue
        if written_by == instance:
            yield _saved_at(step), str(path), partial(_load_plain, path)


def _saved_at(step: int) -> Position:
    """Return the position of a checkpoint of this step, which counts less than a snapshot's position of the same step."""
    return Position(global_step=step, phase=LoopPhase.ADVANCE_END)


def _load_listed(storage: Storage, record: Record) -> dict[str, Any]:
    return {"checkpoint": load_verified(storage, record)}


def _load_snapshot(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = read_snapshot(path)[1]
    return state


def _load_plain(path: Path) -> dict[str, Any]:
    """Return a checkpoint after checking the zip archive's checksums. Raises `CheckpointError` or `OSError`."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise CheckpointError(f"checkpoint {path} is damaged: {damaged}")
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=False)
    except (zipfile.BadZipFile, RuntimeError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read: {error}") from error
    return {"checkpoint": content}
