"""`HealthReports`: what workers say of their machines, into the record, at most once a minute for each, or when a training has rescaled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future

from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.writes import ReportHealth
from dtf_lightning.farm.rules.arrays import GENERATION
from dtf_lightning.farm.rules.health import WorkerHealth

log = logging.getLogger(__name__)

MINUTE = 60.0


class HealthReports:
    """Runs on the coordinator's event loop.

    Args:
        monotonic: seconds.
    """

    def __init__(self, record: FarmRecord, monotonic: Callable[[], float]) -> None:
        self._record = record
        self._monotonic = monotonic
        self._written: dict[str, float] = {}
        """Worker -> when its last report was written."""
        self._told: dict[str, dict[str, float | None]] = {}
        """Worker -> the generations of the trainings of which it had parts, in that report."""

    def heard(self, worker: str, health: WorkerHealth) -> None:
        """A worker has reported. One that is written is never waited for: the next report says more."""
        now = self._monotonic()
        if now - self._written.get(worker, -MINUTE) < MINUTE and not self._is_news(worker, health):
            return
        self._told[worker] = {task: figures.get(GENERATION) for task, figures in health.tasks.items()}
        self._written = {name: at for name, at in self._written.items() if now - at < MINUTE} | {worker: now}
        self._record.write(ReportHealth(worker=worker, health=health)).add_done_callback(_told)

    def _is_news(self, worker: str, health: WorkerHealth) -> bool:
        """Whether a training is in another generation than its parts there had told."""
        told = self._told.get(worker, {})
        return any(told.get(task) != figures.get(GENERATION) for task, figures in health.tasks.items())


def _told(done: Future[bool]) -> None:
    if (error := done.exception()) is not None:
        log.info("a worker's health is not recorded: %s", error)
