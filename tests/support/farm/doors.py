"""Two coordinators of one farm in this process, and connections with tokens of every kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.http import Connection, FarmRefused
from dtf_lightning.farm.tokens import read_token
from support.farm.server import CoordinatorInThread


class Farm:
    """Two coordinators, `own` is the farm's own token."""

    def __init__(self, store: MemoryStore, folder: Path) -> None:
        self.store = store
        self.coordinators = [CoordinatorInThread(store, folder, name=name) for name in ("c0", "c1")]
        for coordinator in self.coordinators:
            coordinator.loop.start_threads()
        self.urls = tuple(coordinator.url for coordinator in self.coordinators)
        self.own = read_token(self.coordinators[0].token_file)
        self._open: list[Connection] = []
        self.admin = Connection((self.urls[0],), self.own)
        self.admin.ask("GET", "/api/status")  # opens the connection that it keeps

    def connect(self, token: str, at: int = 0) -> Connection:
        connection = Connection((self.urls[at],), token, patience=0.0)
        self._open.append(connection)
        return connection

    def make(self, role: str, **fields: Any) -> dict[str, Any]:
        return self.admin.ask("POST", "/api/tokens", {"role": role, **fields})

    def token(self, role: str, **fields: Any) -> str:
        return self.make(role, **fields)["token"]

    def audit(self, at: int = 0) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.coordinators[at].audit.read_text().splitlines()]

    def disconnect(self) -> None:
        """Close what `connect` has opened."""
        while self._open:
            self._open.pop().close()

    def close(self) -> None:
        self.admin.close()
        for coordinator in self.coordinators:
            coordinator.stop()


def refusal_of(connection: Connection) -> FarmRefused | None:
    """Why a coordinator does not show the farm's status; `None`: it does."""
    try:
        connection.ask("GET", "/api/status")
    except FarmRefused as refusal:
        return refusal
    return None


def refused(call: Callable[..., Any], *arguments: Any, **fields: Any) -> FarmRefused:
    with pytest.raises(FarmRefused) as caught:
        call(*arguments, **fields)
    return caught.value
