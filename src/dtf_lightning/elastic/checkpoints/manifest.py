"""The manifest says which files of a folder belong to a run, and what they must contain.

Rules that this file guards:

* a run owns the files that its manifest names, and no others: two runs may share a folder;
* a file is named before it is written (`intended`) and until it is removed (`doomed`): whenever the writer dies,
  nothing of it is left without an owner;
* there are two slots, written in turn, each with its own checksum: if one is damaged the other is one edition behind.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO

from dtf_lightning.elastic.checkpoints.record import Record
from dtf_lightning.elastic.checkpoints.storage.interface import Storage
from dtf_lightning.errors import SettingsError

FORMAT = "dtf-checkpoints 1"
_FILE = re.compile(r"manifest-(?P<run>[A-Za-z0-9_-]+)\.(?P<slot>[01])\.json")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The files that a run owns in a folder."""

    run: str
    edition: int = 0
    """The number of this edition; editions count the writes, from 1."""
    records: tuple[Record, ...] = ()
    """The records of the kept checkpoints, oldest first."""
    intended: Record | None = None
    """The checkpoint that is being written; its parts have no checksums yet."""
    doomed: tuple[str, ...] = ()
    """The files and folders that are to be removed, or have been."""

    def __post_init__(self) -> None:
        if not _FILE.fullmatch(file_name(self.run, 0)):
            raise SettingsError(f"run={self.run!r}: letters, digits, - and _ are allowed, as it becomes a file's name")

    def encode(self) -> bytes:
        body = json.dumps(
            {
                "run": self.run,
                "edition": self.edition,
                "records": [record.to_json() for record in self.records],
                "intended": self.intended.to_json() if self.intended else None,
                "doomed": list(self.doomed),
            },
            indent=1,
        ).encode()
        return f"{FORMAT} {hashlib.sha256(body).hexdigest()}\n".encode() + body

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Return the manifest that `encode` wrote. Raises `ValueError` when a single byte is not as it was written."""
        head, _, body = data.partition(b"\n")
        if head != f"{FORMAT} {hashlib.sha256(body).hexdigest()}".encode():
            raise ValueError("its checksum does not match its content")
        content: dict[str, Any] = json.loads(body)
        return cls(
            run=content["run"],
            edition=content["edition"],
            records=tuple(Record.from_json(record) for record in content["records"]),
            intended=Record.from_json(content["intended"]) if content["intended"] else None,
            doomed=tuple(content["doomed"]),
        )


@dataclass(frozen=True)
class Loaded:
    """What reading the two slots of a run's manifest gave."""

    manifest: Manifest | None
    """The newest edition that is intact."""
    damaged: tuple[str, ...]
    """The slots that are there and cannot be read."""


def load(storage: Storage, run: str) -> Loaded:
    """Read both slots. Raises `OSError` for anything that is not damage (permissions, a network)."""
    found, damaged = [], []
    for slot in (0, 1):
        name = file_name(run, slot)
        try:
            with storage.open(name) as file:
                found.append(Manifest.decode(file.read()))
        except FileNotFoundError:
            continue
        except (ValueError, KeyError, TypeError) as error:
            damaged.append(f"{name}: {error}")
    return Loaded(max(found, key=lambda manifest: manifest.edition, default=None), tuple(damaged))


def store(storage: Storage, manifest: Manifest) -> None:
    """Write the edition into the slot of the edition before the last. Raises `OSError`."""

    def content(file: BinaryIO) -> None:
        file.write(manifest.encode())

    storage.write(file_name(manifest.run, manifest.edition % 2), content)


def file_name(run: str, slot: int) -> str:
    """Return the file name of one slot of a run's manifest."""
    return f"manifest-{run}.{slot}.json"


def runs(names: Iterable[str]) -> list[str]:
    """Return the runs that have a manifest among these files."""
    return sorted({match["run"] for name in names if (match := _FILE.fullmatch(name))})
