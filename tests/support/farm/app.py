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
from dtf_lightning.farm.server.doors.doors import Doors
from dtf_lightning.farm.server.presence import CoordinatorPlace

if TYPE_CHECKING:
    from fastapi import FastAPI


@contextmanager
def farm_parts() -> Iterator[tuple[FastAPI, Coordinator, Doors]]:
    with tempfile.TemporaryDirectory() as folder:
        store = MemoryStore()
        try:
            yield asyncio.run(_build(store, Path(folder)))
        finally:
            store.close()


@contextmanager
def farm_app() -> Iterator[FastAPI]:
    with farm_parts() as (app, _, _):
        yield app


async def _build(store: MemoryStore, folder: Path) -> tuple[FastAPI, Coordinator, Doors]:
    place = CoordinatorPlace(farm="f", name="c0", address="http://127.0.0.1:1", folder=folder, version="0")
    coordinator = Coordinator(store, place)
    doors = Doors.of(coordinator, "secret", "f")
    return build_app(coordinator, doors), coordinator, doors
