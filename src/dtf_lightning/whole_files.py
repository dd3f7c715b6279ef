"""Files that are whole under their name, or not there: written beside it and renamed.

Rules that this file guards:
- Whoever reads the name finds the old content or the new, never a part; an error leaves the old, and nothing beside it.
- With `durable` the content and its name are on the disk when the write returns (fsync of file and folder); without, they
  survive the process, and a power cut may leave the old content, or an empty file on some file systems.
- What a killed process leaves beside a name begins with a dot and ends with `BESIDE`: `is_left_beside` tells it.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from io import BufferedRandom
from pathlib import Path

BESIDE = ".beside"


@contextlib.contextmanager
def whole_file(path: Path, *, durable: bool, private: bool = False) -> Iterator[BufferedRandom]:
    """Inside, a new file can be written and read; afterwards it has its name, unless the body raised. Raises `OSError`.

    `private`: nobody but its owner may read it, from the first byte on.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}{BESIDE}")
    try:
        mode = 0o600 if private else 0o666
        with open(beside, "x+b", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        beside.rename(path)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to raise
            beside.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_whole(path: Path, data: bytes, *, durable: bool = False, private: bool = False) -> None:
    """Write a whole file, where `private` for its owner alone. Raises `OSError`."""
    with whole_file(path, durable=durable, private=private) as file:
        file.write(data)


def write_durably(path: Path, data: bytes) -> None:
    """Write a whole file that is on the disk when this returns. Raises `OSError`."""
    write_whole(path, data, durable=True)


def sync_folder(folder: Path) -> None:
    """Let the folder's names survive a power cut. Raises `OSError`."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_left_beside(path: Path) -> bool:
    """Whether it is a file that is being written, or that a process left which was killed meanwhile."""
    return path.name.startswith(".") and path.name.endswith(BESIDE)
