"""One node's part in a run's snapshots: where they are written, which there are, and what is remembered of the run.

Rules that this file guards:

* a run is known by its id; what may be edited from life to life (the script's text, settings) is remembered in its record
  and compared, and never decides whether what the run has left is found;
* in a node's memory, which all programs of a user share, the script's path belongs to the folder's name, so that two
  projects that use one id do not meet there; in `run_dir` it does not;
* a finished run stays finished for the agents under which it finished: they may start its workers anew for what a script
  does after training. For others its id is free.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dtf_lightning.elastic.checkpoints.storage.local import FileOperations
from dtf_lightning.elastic.rules.resume import Position
from dtf_lightning.elastic.snapshots.format import SnapshotHeader
from dtf_lightning.elastic.snapshots.packing import Packed
from dtf_lightning.elastic.snapshots.settings import MEMORY_SHARE, SnapshotSettings
from dtf_lightning.elastic.snapshots.store import NoRoom, SnapshotFolder, Stored
from dtf_lightning.whole_files import write_whole

log = logging.getLogger("dtf_lightning")

RECORD = "run.json"
UNNAMED = "none"
"""The run id that torchrun gives to a run without one."""
OLD = 24 * 3600.0
"""Seconds after which what other runs have left in shared memory is removed."""


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """What is remembered of a run from one start of its workers to the next."""

    instance: str
    generation: int
    """The number of the last generation; each start of the workers is one generation, from 1."""
    written_at: float
    """When the record was written, in seconds since the epoch."""
    world_size: int = 0
    finished: bool = False
    step: int = 0
    """The number of optimizer steps with which the run finished; 0 before."""
    agents: tuple[str, ...] = ()
    """The agents of this life and, once the run has finished, of those after it: names that `agent_name` gave."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """The settings of this life by name, as the next one compares them with its own."""
    checkpoint_folders: tuple[str, ...] = ()
    """The folders in which the run's callbacks have saved checkpoints."""

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> RunRecord:
        """Return the record that `asdict` gave. Raises `TypeError`, `KeyError` or `ValueError` for anything else."""
        lists = {name: tuple(fields[name]) for name in ("checkpoint_folders", "agents") if name in fields}
        return cls(**{**fields, **lists})


def run_key(run_id: str, known_by: Mapping[str, str], agent: str) -> str:
    """Return the name of a run's folder: two runs of one id share it only if `known_by` is the same.

    A run that was given no id is known by its agent: it ends with the agent, and the next run begins anew.
    """
    name = f"{run_id}\n{agent}" if run_id == UNNAMED else run_id
    text = json.dumps([name, sorted(known_by.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:20]


def last_record(records: Iterable[RunRecord], agents: Collection[str] = ()) -> RunRecord | None:
    """Return the newest record of the run that these agents go on with; `None`: a new run begins.

    That is an instance that finished under one of them, whose workers they have started once more; otherwise one that no
    record says to be over.
    """
    records = list(records)
    over = {record.instance for record in records if record.finished}
    theirs = [record for record in records if record.finished and not set(agents).isdisjoint(record.agents)]
    open_ones = [record for record in records if record.instance not in over]
    return max(theirs or open_ones, key=lambda record: (record.written_at, record.generation), default=None)


def agent_name() -> str:
    """Return the name of this worker's agent, the process that started it; no other host or start has the same."""
    parent = os.getppid()
    try:
        started = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        started = "0"
    return f"{socket.gethostname()}-{parent}-{started}"


class NodeSnapshots:
    """A node's snapshots and records of one run. Every worker of the node has such an object; they share the files.

    Args:
        key: the name of the run's folder in memory, which `run_key` gave.
        run_dir: the folder for what does not fit into memory; all nodes may share it.
        agent: the name that `agent_name` gave.
        key_on_disk: the name of the run's folder in `run_dir`; empty: `key`.
    """

    def __init__(
        self,
        settings: SnapshotSettings,
        *,
        key: str,
        run_dir: Path,
        agent: str,
        key_on_disk: str = "",
        operations: FileOperations | None = None,
    ) -> None:
        self._agent, self._operations = agent, operations
        self._memory_root, _ = _roots(settings, key, run_dir)
        _, self._disk_root = _roots(settings, key_on_disk or key, run_dir)
        self._memory: SnapshotFolder | None = None
        self._disk: SnapshotFolder | None = None
        self._to_memory = settings.memory != 0
        """Whether the next snapshot goes to memory; those that are in memory stay readable."""
        self._said_lost = False
        if not self._to_memory:
            return
        with contextlib.suppress(OSError):
            _remove_old(settings.folder, keep=self._memory_root)
        try:
            limit = settings.memory if settings.memory is not None else _free(settings.folder)
            self._memory = SnapshotFolder(self._memory_root, agent, limit, operations)
        except OSError as error:
            self._fall_back(error)

    # --- the run's record --------------------------------------------------------------------------------------------

    def records(self) -> Iterator[RunRecord]:
        """Yield the records that this node has of the run; one that cannot be read is passed over with a warning.

        Where there is none, the newest snapshot tells which run it is of.
        """
        found = False
        for root in (self._memory_root, self._disk_root):
            try:
                record = RunRecord.from_json(json.loads((root / RECORD).read_text()))
                found = True
                yield record
            except FileNotFoundError:
                continue
            except (OSError, ValueError, TypeError, KeyError) as error:
                log.warning("%s cannot be read: %s", root / RECORD, error)
        newest = max(self.stored(), key=_age, default=None) if not found else None
        if newest is not None:
            log.warning("no record of the run is left beside %s, which is taken for one of it", newest.path)
            header, written_at = newest.header, newest.path.stat().st_mtime
            yield RunRecord(instance=header.instance, generation=header.generation, written_at=written_at)

    def remember(self, record: RunRecord) -> None:
        """Write the record into memory and onto the disk; a place that cannot be written to costs a warning."""
        text = json.dumps(asdict(record))
        for root in (self._memory_root if self._memory is not None else None, self._disk_root):
            if root is None:
                continue
            try:
                root.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_whole(root / RECORD, text.encode())
            except OSError as error:
                log.warning("where run %s stands cannot be written to %s: %s", record.instance, root, error)

    # --- snapshots ---------------------------------------------------------------------------------------------------

    def stored(self) -> list[Stored]:
        """Return all snapshots that this node can read, with intact headers; the node's own in memory come first."""
        found = self._memory.stored() if self._memory is not None else []
        if self._disk is None and any(path.is_dir() for path in self._disk_root.glob("*")):
            self._open_disk()
        return found + (self._disk.stored() if self._disk is not None else [])

    def write(self, packed: Packed, header: SnapshotHeader, *, on_disk_too: bool = False) -> Path | None:
        """Write a snapshot where there is room for it; return `None` if it is there already, or could not be written.

        `on_disk_too` writes it into `run_dir` whatever room there is in memory. A failure is logged, and training goes on. Once the snapshot is written, those of agents that are gone are
        removed.
        """
        written = self._write(packed, header)
        if on_disk_too and self._to_memory:
            written = self._write_to_disk(packed, header) or written
        if written is not None:
            for folder in self._folders():
                folder.remove_dead_writers()
        return written

    def _write(self, packed: Packed, header: SnapshotHeader) -> Path | None:
        if self._memory is not None and self._to_memory:
            try:
                return self._memory.write(packed, header)
            except (OSError, NoRoom) as error:
                self._fall_back(error)
        return self._write_to_disk(packed, header)

    def _write_to_disk(self, packed: Packed, header: SnapshotHeader) -> Path | None:
        try:
            return (self._disk or self._open_disk()).write(packed, header)
        except OSError as error:
            if not self._said_lost:
                self._said_lost = True
                log.error("a snapshot could not be written to the disk either, training goes on without: %s", error)
            return None

    def forget_after(self, position: Position) -> None:
        """Remove the snapshots of later positions than the one from which the run goes on."""
        for one in self.stored():
            if one.header.position > position:
                one.path.unlink(missing_ok=True)

    def remove_foreign(self, instance: str) -> None:
        """Remove the snapshots that other instances of this run have left."""
        for folder in self._folders():
            folder.remove_foreign(instance)

    def finish(self, record: RunRecord) -> None:
        """Remember that every worker has come to the run's end, and remove all of this node's snapshots but the last.

        That one is for workers that are started anew for what a script does after training.
        """
        own = [one for folder in self._folders() for one in folder.own()]
        for one in sorted(own, key=lambda one: one.header.position)[:-1]:
            one.path.unlink(missing_ok=True)
        for folder in self._folders():
            folder.remove_dead_writers()
        self.remember(record)

    def leave(self) -> None:
        """Remove what this node keeps of a finished run, if no other worker of the node needs it. Idempotent.

        The record that the run has finished stays, on the disk.
        """
        for folder in self._folders():
            folder.remove_own()
        self._memory = self._disk = None
        if not any(path.is_dir() for path in self._memory_root.glob("*")):
            shutil.rmtree(self._memory_root, ignore_errors=True)

    @property
    def places(self) -> str:
        """The folders of this node's snapshots and records, for messages."""
        return f"{self._memory_root} and {self._disk_root}"

    @staticmethod
    def discard(settings: SnapshotSettings, *, key: str, run_dir: Path) -> None:
        """Remove all that nodes have kept of the run of this key in this node's memory and in `run_dir`."""
        for root in _roots(settings, key, run_dir):
            shutil.rmtree(root, ignore_errors=True)

    def close(self) -> None:
        """Release the files, which stay. Idempotent."""
        for folder in self._folders():
            folder.close()

    # --- steps of the above ------------------------------------------------------------------------------------------

    def _folders(self) -> list[SnapshotFolder]:
        return [folder for folder in (self._memory, self._disk) if folder is not None]

    def _open_disk(self) -> SnapshotFolder:
        self._disk = SnapshotFolder(self._disk_root, self._agent, None, self._operations)
        return self._disk

    def _fall_back(self, error: Exception) -> None:
        self._to_memory = False
        log.warning("snapshots go to the disk (%s) from now on, not to memory: %s", self._disk_root, error)


def _age(stored: Stored) -> tuple[float, Position]:
    return stored.path.stat().st_mtime, stored.header.position


def _roots(settings: SnapshotSettings, key: str, run_dir: Path) -> tuple[Path, Path]:
    """Return the folders of a run's snapshots in memory and on the disk."""
    return settings.folder / f"dtf-{os.geteuid()}-{key}", run_dir / "snapshots" / key


def _free(folder: Path) -> int:
    found = os.statvfs(folder)
    return int(found.f_bavail * found.f_frsize * MEMORY_SHARE)


def _remove_old(folder: Path, *, keep: Path) -> None:
    """Remove what other runs of this user have left in memory and have not touched for a day."""
    for path in folder.glob(f"dtf-{os.geteuid()}-*"):
        if path == keep or not path.is_dir():
            continue
        newest = max(entry.lstat().st_mtime for entry in [path, *path.rglob("*")])
        if time.time() - newest > OLD:
            shutil.rmtree(path, ignore_errors=True)
