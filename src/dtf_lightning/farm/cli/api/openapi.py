"""`dtf farm openapi`: the API's description, without a farm."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.farm.cli.options import add_farm_command

if TYPE_CHECKING:
    from dtf_lightning.etcd.store import Store


def add_openapi(actions: Commands) -> None:
    """Add the command to the parser."""
    add_farm_command(actions, "openapi", _openapi, "print what the coordinators' API takes, as OpenAPI 3.1")


def _openapi(_: argparse.Namespace) -> int:
    print(json.dumps(describe_without_a_farm(), indent=2))
    return DONE


def describe_without_a_farm() -> dict[str, Any]:
    """Return what the API takes, as OpenAPI, where no farm runs."""
    import asyncio

    from dtf_lightning import __version__
    from dtf_lightning.etcd.memory.store import MemoryStore
    from dtf_lightning.farm.server.api import build_app
    from dtf_lightning.farm.server.coordinator import Coordinator
    from dtf_lightning.farm.server.doors.doors import Doors
    from dtf_lightning.farm.server.presence import CoordinatorPlace
    from dtf_lightning.farm.server.routes.description import describe

    async def build(store: Store, folder: Path) -> dict[str, Any]:
        place = CoordinatorPlace(farm="farm", name="c", address="", folder=folder, version=__version__)
        coordinator = Coordinator(store, place)
        return describe(build_app(coordinator, Doors.of(coordinator, "", "farm")))

    with tempfile.TemporaryDirectory() as folder:
        store = MemoryStore()
        try:
            return asyncio.run(build(store, Path(folder)))
        finally:
            store.close()
