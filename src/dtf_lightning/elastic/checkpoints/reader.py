"""Finds and verifies checkpoints: nothing is believed that its checksum does not confirm. Writes nothing."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from dtf_lightning.elastic.checkpoints import manifest as manifests
from dtf_lightning.elastic.checkpoints.manifest import Loaded
from dtf_lightning.elastic.checkpoints.record import Mode, Record, ranking
from dtf_lightning.elastic.checkpoints.storage.interface import TEMPORARY, Storage, checksum
from dtf_lightning.elastic.checkpoints.storage.opening import open_storage

log = logging.getLogger("dtf_lightning")


class Integrity(Enum):
    INTACT = "intact"
    MISSING = "missing"
    DAMAGED = "damaged"


@dataclass(frozen=True)
class Verdict:
    """The result of verifying a checkpoint."""

    integrity: Integrity
    reason: str = ""

    @property
    def intact(self) -> bool:
        """Whether every byte is as it was written."""
        return self.integrity is Integrity.INTACT


def verify(storage: Storage, record: Record) -> Verdict:
    """Read every byte of the checkpoint and compare. Raises `OSError` only for what is neither damage nor absence."""
    for part in record.parts:
        try:
            size = storage.size(part.path)
            if size != part.size:
                return Verdict(Integrity.DAMAGED, f"{part.path} has {size} bytes, {part.size} were written")
            found = checksum(storage, part.path)
        except FileNotFoundError:
            return Verdict(Integrity.MISSING, f"{part.path} is not there")
        if found != part:
            return Verdict(Integrity.DAMAGED, f"{part.path} does not have the checksum it was written with")
    return Verdict(Integrity.INTACT)


def read_runs(storage: Storage) -> dict[str, Loaded]:
    """Read the manifest of every run in the folder. Raises `OSError`."""
    return {run: manifests.load(storage, run) for run in manifests.runs(storage.names())}


def unlisted(storage: Storage, listed: Iterable[Record]) -> list[str]:
    """Return the checkpoint files that no manifest names: another tool's, or a run's whose manifest is lost."""
    known = {part.path.split("/")[0] for record in listed for part in record.parts}
    return [name for name in storage.names() if name.endswith((".ckpt", TEMPORARY)) and name not in known]


def newest_first(records: Iterable[Record]) -> list[Record]:
    """Sort records in the order in which `latest_checkpoint` tries them: newest first, suspect ones last."""
    return sorted(records, key=lambda record: (record.suspect, -record.saved_at, -record.serial))


def best_first(records: Sequence[Record], monitor: str, mode: Mode) -> list[Record]:
    """Sort records in the order in which `best_checkpoint` tries them: by metric; those without one come last."""
    able = [record for record in records if record.metric(monitor) is not None and not record.suspect]
    return [
        *sorted(able, key=lambda record: ranking(record, monitor, mode)),
        *newest_first(record for record in records if record not in able),
    ]


def first_intact(storage: Storage, candidates: Iterable[Record]) -> Record | None:
    """Return the first candidate that verifies; the others are named in the log."""
    for record in candidates:
        verdict = verify(storage, record)
        if verdict.intact:
            return record
        log.warning("checkpoint %s is %s (%s); trying the next", record.name, verdict.integrity.value, verdict.reason)
    return None


def latest_checkpoint(folder: str | os.PathLike[str], *, run: str | None = None) -> str | None:
    """Return the path or URL of the newest intact checkpoint, for `trainer.fit(ckpt_path=...)`; `None` without any.

    Args:
        folder: the path or URL of the folder.
        run: the name of the run whose checkpoint is wanted; without it, the newest of all runs in the folder.

    Raises:
        OSError: the folder cannot be read.
    """
    storage = open_storage(folder)
    record = first_intact(storage, newest_first(_records(storage, run)))
    return storage.location(record.name) if record else None


def best_checkpoint(
    folder: str | os.PathLike[str], monitor: str, mode: Mode = "min", *, run: str | None = None
) -> str | None:
    """Return the path or URL of the best intact checkpoint.

    If none has the metric, it is the newest intact one; `None` if there is none either.

    Arguments and exceptions are those of `latest_checkpoint`.
    """
    storage = open_storage(folder)
    record = first_intact(storage, best_first(_records(storage, run), monitor, mode))
    return storage.location(record.name) if record else None


def _records(storage: Storage, run: str | None) -> list[Record]:
    found = read_runs(storage)
    return [
        record
        for name, loaded in found.items()
        if loaded.manifest is not None and run in (None, name)
        for record in loaded.manifest.records
    ]
