"""Which storage a path or URL means."""

from __future__ import annotations

import os

from dtf_lightning.elastic.checkpoints.storage.interface import Storage
from dtf_lightning.elastic.checkpoints.storage.local import LocalStorage


def open_storage(location: str | os.PathLike[str]) -> Storage:
    """A local path or `file://` URL gets `LocalStorage`, any other URL fsspec."""
    text = os.fspath(location)
    scheme, separator, path = text.partition("://")
    if separator and scheme not in ("file", "local"):
        from dtf_lightning.elastic.checkpoints.storage.remote import FsspecStorage

        return FsspecStorage(text)
    return LocalStorage(path if separator else text)
