"""Where a farm worker keeps what on its disk. All of it is its owner's only: logs and results may be confidential.

    <folder>/worker.lock, keeper.lock, keeper.socket, keeper.log
    <folder>/attempts/<task>.<revision>/    order.json end.json log stored stdin hardware_metrics.jsonl returned.json token results/ work/ masked/
    <folder>/spool/<task>.<revision>.json
    <folder>/cache/
    <temporary>/dtf-<mark>/                 an attempt's TMPDIR, until its end

An attempt's temporary files lie elsewhere because sockets are made there, whose paths have 107 bytes at most.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from dtf_lightning.errors import SettingsError

TRASH = ".trash-"


@dataclass(frozen=True)
class AttemptFolder:
    """The folder of one attempt."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def task(self) -> str:
        return unquote(self.name.rpartition(".")[0])

    @property
    def revision(self) -> int:
        return int(self.name.rpartition(".")[2])

    @property
    def order(self) -> Path:
        """What was ordered; the folder counts once this is there."""
        return self.path / "order.json"

    @property
    def end(self) -> Path:
        """How it ended, written by the keeper."""
        return self.path / "end.json"

    @property
    def log(self) -> Path:
        return self.path / "log"

    @property
    def stored(self) -> Path:
        """How many bytes of the log somebody else has stored."""
        return self.path / "stored"

    @property
    def hardware_metrics(self) -> Path:
        """What it takes, as a series."""
        return self.path / "hardware_metrics.jsonl"

    @property
    def returned(self) -> Path:
        """What it returned, if it is a call."""
        return self.path / "returned.json"

    @property
    def stdin(self) -> Path:
        return self.path / "stdin"

    @property
    def results(self) -> Path:
        return self.path / "results"

    @property
    def token(self) -> Path:
        """With which its command may ask the farm, if it may; goes when it has ended."""
        return self.path / "token"

    @property
    def masked(self) -> Path:
        """Copies, without secrets, of what it has left."""
        return self.path / "masked"

    @property
    def work(self) -> Path:
        return self.path / "work"

    def make(self) -> None:
        for folder in (self.path, self.results, self.work):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def clear_workspace(self) -> None:
        """Remove all but order, end and log."""
        for part in (self.results, self.work, self.masked):
            remove_tree(part)
        self.stdin.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all of it. What is seen of it afterwards is all or nothing."""
        trash = self.path.with_name(f"{TRASH}{uuid.uuid4().hex}")
        try:
            self.path.rename(trash)
        except FileNotFoundError:
            return
        remove_tree(trash)


class WorkerFolders:
    """The folder of a worker, made where it is not there yet. `cache`: where caches lie, if not in it."""

    def __init__(self, folder: Path, cache: Path | None = None) -> None:
        self.path = folder.absolute()
        self.attempts = self.path / "attempts"
        self.spool = self.path / "spool"
        self.cache = (cache or self.path / "cache").absolute()
        for part in (self.path, self.attempts, self.spool, self.cache):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)

    def attempt(self, task: str, revision: int) -> AttemptFolder:
        return AttemptFolder(self.attempts / _name(task, revision))

    def spooled(self, task: str, revision: int) -> Path:
        return self.spool / f"{_name(task, revision)}.json"

    def all_attempts(self) -> Iterator[AttemptFolder]:
        """Those whose order is on the disk."""
        for path in sorted(self.attempts.iterdir()):
            if not path.name.startswith(TRASH) and AttemptFolder(path).order.exists():
                yield AttemptFolder(path)

    def remove_leftovers(self) -> None:
        """Of attempts that were just being made or removed when a process was killed. Only whoever has the lock may call it."""
        for path in list(self.attempts.iterdir()):
            if path.name.startswith(TRASH) or not AttemptFolder(path).order.exists():
                remove_tree(path)

    def lock(self) -> int:
        """Make the folder this process's; the descriptor is the lock. Raises `SettingsError` if another one has it."""
        file = os.open(self.path / "worker.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            raise SettingsError(
                f"another farm worker uses the folder {self.path}: every worker of a machine needs a folder of its own"
            ) from None
        return file


def remove_tree(path: Path) -> None:
    """Remove a folder and all in it, as far as that is possible; also where a task has locked its own folders."""
    with contextlib.suppress(OSError):
        path.rmdir()  # of most attempts nothing is in it
        return
    shutil.rmtree(path, ignore_errors=True)
    if not os.path.lexists(path):
        return
    with contextlib.suppress(OSError):
        path.chmod(0o700)
        for folder, names, _ in os.walk(path):
            for inner in (Path(folder, name) for name in names):
                if not inner.is_symlink():
                    inner.chmod(0o700)
    shutil.rmtree(path, ignore_errors=True)


def _name(task: str, revision: int) -> str:
    return f"{quote(task, safe='')}.{revision}"
