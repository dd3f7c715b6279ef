"""Disks on which things go wrong: processes that die, power that is cut, space that runs out."""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from dtf_lightning.elastic.checkpoints import manifest as manifests
from dtf_lightning.elastic.checkpoints.folder import CheckpointFolder
from dtf_lightning.elastic.checkpoints.reader import verify
from dtf_lightning.elastic.checkpoints.record import Record
from dtf_lightning.elastic.checkpoints.retention import AnyOf, BestN, LatestN
from dtf_lightning.elastic.checkpoints.storage.local import FileOperations, LocalStorage

BEST, RECENT = 2, 3
POLICY = AnyOf((BestN(BEST, "loss"), LatestN(RECENT)))
CHANGES = ("make_folder", "create", "write", "sync", "close", "rename", "sync_folder", "unlink", "remove_folder")


def content(step: int, size: int = 200) -> bytes:
    return bytes((step * 31 + index * 7) % 256 for index in range(size))


def save(folder: CheckpointFolder, step: int, loss: float | None = None) -> Record | None:
    metrics = {} if loss is None else {"loss": loss}
    files = {
        ".ckpt": lambda file: file.write(content(step)),
        ".safetensors": lambda file: file.write(content(step + 1000)),
    }
    return folder.save(f"step={step}.ckpt", files, step=step, metrics=metrics)


def before(path: Path) -> None:
    """Five checkpoints, of which the next save removes one: step 30, neither best nor recent."""
    folder = CheckpointFolder(LocalStorage(path), "run", POLICY)
    for step, loss in ((10, 1.0), (20, 1.1), (30, 3.0), (40, 2.5), (50, 2.0)):
        save(folder, step, loss)
    (path / "notes.txt").write_text("somebody else's")


def save_and_prune(path: Path, operations: FileOperations) -> None:
    save(CheckpointFolder(LocalStorage(path, operations), "run", POLICY), 60, 1.05)


def check_nothing_lost(path: Path) -> set[int]:
    """The best N and the last are intact, whichever edition of the manifest is there; returns the steps listed."""
    storage = LocalStorage(path)
    loaded = manifests.load(storage, "run")
    assert loaded.manifest is not None, loaded
    records = loaded.manifest.records
    steps = {record.step for record in records}
    assert steps in ({10, 20, 30, 40, 50}, {10, 20, 40, 50, 60}, {10, 40, 50, 60}), steps
    for record in records:
        assert verify(storage, record).intact, (record, verify(storage, record))
    return steps


def check_goes_on(path: Path) -> None:
    """A new writer finishes what the old one began, saves, and owns every file but the one that was there before."""
    storage = LocalStorage(path)
    folder = CheckpointFolder(storage, "run", POLICY)
    assert save(folder, 70, 5.0) is not None
    assert len(folder.records) <= BEST + RECENT
    listed = {part.path for record in folder.records for part in record.parts}
    assert set(storage.names()) == listed | {"notes.txt", "manifest-run.0.json", "manifest-run.1.json"}
    for record in folder.records:
        assert verify(storage, record).intact


class Counting(FileOperations):
    """Calls `meet(number, name)` before every operation, from 1."""

    def __init__(self, meet: Callable[[int, str], object]) -> None:
        self._numbers = itertools.count(1)
        self._meet = meet

    def __getattribute__(self, name: str):
        value = object.__getattribute__(self, name)
        if name not in CHANGES:
            return value

        def met(*arguments):
            self._meet(next(self._numbers), name)
            return value(*arguments)

        return met


class TearingWrites(FileOperations):
    """The `number`-th write (from 1) writes half and then calls `stop`."""

    def __init__(self, number: int, stop: Callable[[], object]) -> None:
        self._left = number
        self._stop = stop

    def write(self, file: int, data: memoryview) -> int:
        self._left -= 1
        if self._left == 0:
            os.write(file, data[: len(data) // 2])
            self._stop()
        return os.write(file, data)


class Full(FileOperations):
    """From the `number`-th operation on, whatever needs room fails."""

    def __init__(self, number: int) -> None:
        self._left = number

    def _use(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    def create(self, path: Path) -> int:
        self._use()
        return super().create(path)

    def write(self, file: int, data: memoryview) -> int:
        self._use()
        return super().write(file, data)

    def sync(self, file: int) -> None:
        self._use()
        super().sync(file)


@dataclass
class _Inode:
    written: bytes = b""
    durable: bytes = b""


@dataclass
class PowerCut(FileOperations):
    """Knows, at every moment, what could be on the platters if the power went now.

    The model is harsher than any file system: content is durable after fsync only, and of the directory changes since
    the folder's last fsync any subset may have reached the disk.
    """

    folder: Path
    entries: dict[str, _Inode] = field(default_factory=dict)
    """As they are visible."""
    durable: dict[str, _Inode] = field(default_factory=dict)
    pending: list[tuple[str, _Inode | None]] = field(default_factory=list)
    """Directory changes: a name and what it will mean."""
    open_files: dict[int, _Inode] = field(default_factory=dict)
    watch: Callable[[], object] = lambda: None

    def __post_init__(self) -> None:
        for path in self.folder.iterdir():
            data = path.read_bytes()
            self.entries[path.name] = self.durable[path.name] = _Inode(data, data)

    def create(self, path: Path) -> int:
        file = super().create(path)
        self.open_files[file] = inode = _Inode()
        self._change(path.name, inode)
        return file

    def write(self, file: int, data: memoryview) -> int:
        done = super().write(file, data)
        self.open_files[file].written += bytes(data[:done])
        self.watch()
        return done

    def sync(self, file: int) -> None:
        self.open_files[file].durable = self.open_files[file].written
        self.watch()

    def rename(self, source: Path, target: Path) -> None:
        super().rename(source, target)
        inode = self.entries[source.name]
        self._change(target.name, inode, source.name)

    def unlink(self, path: Path) -> None:
        if path.exists():
            super().unlink(path)
            self._change(path.name, None)

    def sync_folder(self, path: Path) -> None:
        self.durable = dict(self.entries)
        self.pending.clear()
        self.watch()

    def _change(self, name: str, inode: _Inode | None, gone: str | None = None) -> None:
        for changed, meaning in ((name, inode), (gone, None)):
            if changed is None:
                continue
            self.pending.append((changed, meaning))
            if meaning is None:
                self.entries.pop(changed, None)
            else:
                self.entries[changed] = meaning
        self.watch()

    def images(self) -> Iterator[dict[str, bytes]]:
        """Every content of the folder that a power cut could leave now."""
        recent = self.pending[-6:]  # a careful writer never has more; of a careless one's, the older never reached it
        for size in range(len(recent) + 1):
            for subset in itertools.combinations(recent, size):
                entries = dict(self.durable)
                for name, inode in subset:
                    if inode is None:
                        entries.pop(name, None)
                    else:
                        entries[name] = inode
                yield {name: inode.durable for name, inode in entries.items()}
                yield {
                    name: inode.durable + inode.written[len(inode.durable) :][: len(inode.written) // 2]
                    for name, inode in entries.items()
                }
