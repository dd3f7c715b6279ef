"""A farm worker's executor in a test, with all that it tells."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from dtf_lightning.farm.worker.executor import Executor
from dtf_lightning.farm.worker.orders import AttemptEnded, AttemptOrder, AttemptOutput, AttemptStarted, Told

PATIENCE = 60.0
"""Seconds; only a failing test waits this long."""
DEVICES = {"cpu": ("0", "1"), "gpu": ("nvidia/0", "nvidia/1")}

T = TypeVar("T")
_ids = itertools.count(100)


class Listener:
    """Keeps what an executor tells."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self._changed = threading.Condition()

    def __call__(self, told: Told) -> None:
        with self._changed:
            self.told.append(told)
            self._changed.notify_all()

    def wait(self, what: Callable[[], T]) -> T:
        """The first true value of `what`, looked at whenever something was told."""
        with self._changed:
            assert self._changed.wait_for(what, PATIENCE), self.told
            return what()

    def all(self, kind: type[T], revision: int) -> list[T]:
        return [told for told in list(self.told) if isinstance(told, kind) and told.revision == revision]

    def ended(self, revision: int) -> AttemptEnded:
        (end,) = self.wait(lambda: self.all(AttemptEnded, revision))
        return end

    def started(self, revision: int) -> AttemptStarted:
        return self.wait(lambda: self.all(AttemptStarted, revision))[0]

    def output(self, revision: int) -> bytes:
        """All that was told of its log, which must have no gap."""
        text = b""
        for piece in self.all(AttemptOutput, revision):
            assert piece.offset == len(text)
            text += piece.data
        return text

    def all_output(self, revision: int, size: int) -> list[AttemptOutput]:
        """The pieces of its log, once these are `size` bytes; until then none."""
        pieces = self.all(AttemptOutput, revision)
        return pieces if sum(len(piece.data) for piece in pieces) == size else []

    def printed(self, revision: int, text: bytes) -> None:
        self.wait(lambda: text in self.output(revision))


class Worker:
    """An executor and its listener."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.folder = folder
        self.heard = Listener()
        self.executor = Executor(folder, **{"devices": DEVICES, "tell": self.heard, "patience": PATIENCE} | options)

    def start(self, *command: str, **options: Any) -> int:
        """Start an attempt; its revision. Its task is `t<revision>`."""
        revision = next(_ids)
        values = {"task": f"t{revision}", "number": 1, "revision": revision, "command": command, "grace": PATIENCE}
        prepare = options.pop("prepare", None)
        self.executor.start(AttemptOrder(**values | options), prepare)
        return revision

    def shell(self, script: str, **options: Any) -> int:
        return self.start("sh", "-c", script, **options)

    def run(self, *command: str, **options: Any) -> AttemptEnded:
        return self.heard.ended(self.start(*command, **options))

    def run_shell(self, script: str, **options: Any) -> AttemptEnded:
        return self.heard.ended(self.shell(script, **options))
