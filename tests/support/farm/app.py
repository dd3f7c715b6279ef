"""A coordinator's application in this process, without a port: its routes are there, and nothing runs."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.server.api import build_app
from dtf_lightning.farm.server.coordinator import Coordinator
from dtf_lightning.farm.server.presence import CoordinatorPlace

if TYPE_CHECKING:
    from fastapi import FastAPI


@contextmanager
def farm_app() -> Iterator[FastAPI]:
    with tempfile.TemporaryDirectory() as folder:
        store = MemoryStore()
        try:
            yield asyncio.run(_build(store, Path(folder)))
        finally:
            store.close()


async def _build(store: MemoryStore, folder: Path) -> FastAPI:
    place = CoordinatorPlace(farm="f", name="c0", address="http://127.0.0.1:1", folder=folder, version="0")
    return build_app(Coordinator(store, place))
