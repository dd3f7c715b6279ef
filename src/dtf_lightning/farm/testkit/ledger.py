"""What simulated workers did, one line each, written before it is done: `kill -9` leaves no gap.

A line is `start TASK NUMBER REVISION WORKER NONCE` (an attempt begins), `recorded TASK NUMBER KIND` or
`stale TASK NUMBER KIND` (its result was acknowledged).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Execution:
    """An attempt was begun by a worker's process. `said`: what it wrote, which no other execution wrote."""

    task: str
    number: int
    said: str


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A worker was told what became of a result. `recorded`: it counts, or it counted towards a retry."""

    task: str
    number: int
    kind: str
    recorded: bool


class Ledger:
    """An append-only file; each line is one write, so that a killed process leaves no half line."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def write(self, *words: object) -> None:
        """Append one line."""
        os.write(self._file, (" ".join(map(str, words)) + "\n").encode())

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_ledgers(paths: Iterable[Path]) -> tuple[list[Execution], list[Acknowledged]]:
    """Return what ledgers hold. Raises `ValueError` for a line that is none."""
    executions: list[Execution] = []
    acknowledged: list[Acknowledged] = []
    for path in paths:
        for line in path.read_text().splitlines():
            match line.split():
                case ["start", task, number, _, _, nonce]:
                    executions.append(Execution(task, int(number), said(task, int(number), nonce)))
                case ["recorded" | "stale" as verdict, task, number, kind]:
                    acknowledged.append(Acknowledged(task, int(number), kind, verdict == "recorded"))
                case _:
                    raise ValueError(f"{path}: no line of a ledger: {line!r}")
    return executions, acknowledged


def read_runs(path: Path) -> list[Execution]:
    """Return what attempts of real workers wrote: lines `TASK NUMBER NONCE`."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Execution(line.split()[0], int(line.split()[1]), line) for line in lines]


def said(task: str, number: int, nonce: str) -> str:
    """Return what an execution writes to its output."""
    return f"{task} {number} {nonce}"
