"""`LedgerTail` follows a run while it trains, by reading its workers' ledgers as they grow."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class SeenGeneration:
    """Describe a generation that workers have begun."""

    number: int
    world_size: int
    begin: int
    """Optimizer step at which it began."""
    step: int
    """Newest step that a member has begun."""
    epoch: int
    workers: set[str] = field(default_factory=set)
    """Names of the ledgers: node, local rank and incarnation, joined by dots."""

    @property
    def steps(self) -> int:
        """Number of steps that a member has committed in this generation."""
        return self.step - self.begin


class LedgerTail:
    """Follow the ledgers in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[Path, int] = {}
        self.generations: dict[int, SeenGeneration] = {}

    def look(self) -> SeenGeneration | None:
        """Read what has been added; return the newest generation, `None` before the first."""
        for path in sorted(self._folder.glob("*.jsonl")):
            with path.open("rb") as file:
                file.seek(self._read.get(path, 0))
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read[path] = self._read.get(path, 0) + len(whole) + len(newline)
            for line in whole.splitlines():
                self._take(path.stem, json.loads(line))
        return self.generations[max(self.generations)] if self.generations else None

    def _take(self, worker: str, record: dict[str, Any]) -> None:
        number, step = record["generation"], record["step"]
        if record["kind"] == "begin":
            seen = self.generations.setdefault(
                number, SeenGeneration(number, record["world_size"], step, step, record["epoch"])
            )
            seen.workers.add(worker)
        elif record["kind"] == "draw":
            seen = self.generations[number]
            seen.step, seen.epoch = max(seen.step, step), max(seen.epoch, record["epoch"])
