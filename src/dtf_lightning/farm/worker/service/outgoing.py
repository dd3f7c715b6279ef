"""`Outgoing`: what an attempt has written and left, on its way to the farm: its output while it runs, then its artifacts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dtf_lightning.farm.http import Connection
from dtf_lightning.farm.messages import Result
from dtf_lightning.farm.worker.logs import KeptLogs
from dtf_lightning.farm.worker.service.artifact_sender import ArtifactSender
from dtf_lightning.farm.worker.service.at_hand import AttemptsAtHand
from dtf_lightning.farm.worker.service.log_sender import LogSender


class Outgoing:
    """Has threads of its own. Thread-safe.

    Args:
        folder: the worker's.
        connection: to the farm.
        at_hand: knows the results that wait for this.
        complete: is called, in a thread of this object, with each result as it can be said.
    """

    def __init__(
        self, folder: Path, connection: Connection, at_hand: AttemptsAtHand, complete: Callable[[Result], object]
    ) -> None:
        self._at_hand = at_hand
        self._kept = KeptLogs(folder)
        self._logs = LogSender(self._kept, connection, self._output_stored)
        self._artifacts = ArtifactSender(connection, complete)
        self.start = self._logs.start
        self.grown = self._logs.grown

    def ended(self, result: Result) -> None:
        """An attempt has ended: `complete` follows."""
        self._logs.ended(result.task, result.revision, result.outcome.log_bytes)

    def close(self) -> None:
        """End the threads; what is not stored stays on the disk."""
        self._logs.close()
        self._artifacts.close()

    def _output_stored(self, task: str, revision: int) -> None:
        result = self._at_hand.is_waiting((task, revision))
        if result is not None:
            self._artifacts.send(result, rank=self._kept.rank(task, revision) if result.outcome.artifacts else 0)
