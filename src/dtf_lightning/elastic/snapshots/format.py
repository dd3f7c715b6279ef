r"""A snapshot's file: one header line, then the state; every byte is covered by a checksum.

    dtf-snapshot 1 <SHA-256 of the header> <its length>\n
    <header, JSON> <skeleton> <storage 0> <storage 1> ... <SHA-256 of all behind the header>

The header alone says how far training had come, so that sources are compared without reading a state. Storages are
written from, and read into, memory as they are: nothing is serialised that could hold the interpreter for long.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dtf_lightning.elastic.rules.resume import Position
from dtf_lightning.elastic.snapshots.packing import Packed
from dtf_lightning.errors import DtfError

MAGIC = "dtf-snapshot 1"
DIGEST = 32
"""Bytes of a SHA-256."""
CHUNK = 8 << 20
"""Bytes hashed and written at a time."""
MAX_LINE = 200
MAX_HEADER = 64 << 20


class SnapshotDamaged(DtfError):
    """A snapshot that is not, to the last byte, what was written."""


@dataclass(frozen=True, kw_only=True)
class SnapshotHeader:
    """What a snapshot says about itself."""

    instance: str
    """The id of the run's instance; a snapshot of another instance is never used, even if the run's id is the same."""
    signature: str
    """A digest of `parts`."""
    generation: int
    position: Position
    world_size: int
    reason: str
    """Why the snapshot was taken: `periodic`, `stopped`, `finished`, or `a peer was lost`."""
    parts: tuple[str, ...] = ()
    """The shape of the model and its optimizers: one line for each parameter, buffer and optimizer."""
    local_rank: int = 0
    """The local rank of the worker that wrote the snapshot; the state holds that worker's random state."""
    sizes: tuple[int, ...] = ()
    """The sizes in bytes of the skeleton and of each storage."""

    @property
    def payload(self) -> int:
        """The number of bytes behind the header."""
        return sum(self.sizes) + DIGEST

    def encode(self) -> bytes:
        """Return the file's first line and the header."""
        body = json.dumps(asdict(self) | {"position": self.position.to_json()}, separators=(",", ":")).encode()
        return f"{MAGIC} {hashlib.sha256(body).hexdigest()} {len(body)}\n".encode() + body

    @classmethod
    def decode(cls, body: bytes) -> SnapshotHeader:
        """Return the header that `encode` wrote.

        Raises `ValueError`, `KeyError`, `TypeError` or `ProtocolError` for anything else.
        """
        fields: Mapping[str, Any] = json.loads(body)
        position, sizes = Position.from_json(fields["position"]), tuple(map(int, fields["sizes"]))
        parts = tuple(map(str, fields.get("parts", ())))
        return cls(**{**fields, "position": position, "sizes": sizes, "parts": parts})


def write_snapshot(packed: Packed, header: SnapshotHeader, write: Callable[[memoryview], object]) -> None:
    """Give the file's content, front to back, to `write`; `header.sizes` must be what `sizes_of(packed)` gives."""
    write(memoryview(header.encode()))
    digest = hashlib.sha256()
    for part in (memoryview(packed.skeleton), *map(_bytes_of, packed.storages)):
        for start in range(0, len(part), CHUNK):
            chunk = part[start : start + CHUNK]
            digest.update(chunk)
            write(chunk)
    write(memoryview(digest.digest()))


def sizes_of(packed: Packed) -> tuple[int, ...]:
    """Return the `SnapshotHeader.sizes` of this state."""
    return (len(packed.skeleton), *(storage.numel() for storage in packed.storages))


def read_header(path: Path) -> SnapshotHeader:
    """Read what the snapshot says about itself; of its state, only the file's length is checked.

    Raises:
        SnapshotDamaged: it is no snapshot, or not whole.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        line = file.readline(MAX_LINE)
        try:
            magic, digest, text = line.decode().rsplit(" ", 2)
            length = int(text)
            if magic != MAGIC or not line.endswith(b"\n") or not 0 < length <= MAX_HEADER:
                raise ValueError(line)
            body = file.read(length)
            if hashlib.sha256(body).hexdigest() != digest or f"{MAGIC} {digest} {length}\n".encode() != line:
                raise ValueError("checksum")
            header = SnapshotHeader.decode(body)
        except (ValueError, KeyError, TypeError, DtfError) as error:
            raise SnapshotDamaged(f"{path}: its header is not what was written") from error
        expected = len(line) + length + header.payload
        found = path.stat().st_size
    if found != expected:
        raise SnapshotDamaged(f"{path} has {found} bytes, {expected} were written")
    return header


def read_snapshot(path: Path) -> tuple[SnapshotHeader, Any]:
    """Read the header and the state, with its tensors on the CPU, and check every byte.

    Raises:
        SnapshotDamaged: a single byte is not what was written.
        OSError: it cannot be read.
    """
    header = read_header(path)
    digest = hashlib.sha256()
    parts: list[torch.Tensor] = []
    with path.open("rb") as file:
        file.seek(path.stat().st_size - header.payload)
        for size in header.sizes:
            part = torch.empty(size, dtype=torch.uint8)
            view = _bytes_of(part)
            for start in range(0, size, CHUNK):
                chunk = view[start : start + CHUNK]
                if file.readinto(chunk) != len(chunk):
                    raise SnapshotDamaged(f"{path} became shorter while it was read")
                digest.update(chunk)
            parts.append(part)
        if file.read() != digest.digest():
            raise SnapshotDamaged(f"{path}: its checksum does not match its content")
    return header, Packed(bytes(_bytes_of(parts[0])), parts[1:]).unpack()


def _bytes_of(storage: torch.Tensor) -> memoryview:
    array: Any = storage.numpy()
    return memoryview(array).cast("B") if storage.numel() else memoryview(b"")
