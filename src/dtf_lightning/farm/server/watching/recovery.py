"""`Recovery`: the leader does what `rules.watching.remedies` says, or with `recovery.dry_run` only says it."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dtf_lightning.clock import Clock
from dtf_lightning.etcd.store import Compare
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.recovery.writes import ChangeWorkerByFarm
from dtf_lightning.farm.rules.watching.findings import Finding
from dtf_lightning.farm.rules.watching.observation import SeenWorker
from dtf_lightning.farm.rules.watching.remedies import Cordon, cordon_next
from dtf_lightning.farm.server.cluster.view import leader_of
from dtf_lightning.farm.server.models import when
from dtf_lightning.farm.server.pool import Pool

log = logging.getLogger(__name__)

KEPT = 50
"""Remedies that are remembered by this coordinator; that a worker is cordoned, and why, is in its record."""
WRITE = 5.0


class Recovery:
    """Runs on the coordinator's event loop.

    Args:
        leads: whether this coordinator is the leader.
        dry_run: whether it only says what it would do.
    """

    def __init__(
        self, record: FarmRecord, pool: Pool, clock: Clock, *, leads: Callable[[], bool], dry_run: bool
    ) -> None:
        self._record = record
        self._pool = pool
        self._clock = clock
        self._leads = leads
        self._dry_run = dry_run
        self._done: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._said: set[str] = set()
        """Workers of which a dry run has said that they would be cordoned."""

    @property
    def remedies(self) -> list[dict[str, Any]]:
        """What was done, the latest first, as the API shows it; with `dry_run` what would have been."""
        return list(reversed(self._done))

    async def act(
        self, found: Sequence[Finding], workers: Sequence[SeenWorker], since: Mapping[tuple[str, str], float]
    ) -> None:
        """Do what follows from findings. Raises what etcd raises."""
        if not self._leads():
            return
        self._said &= {finding.subject for finding in found}
        wanted = cordon_next(found, workers, since, self._clock.wall())
        if wanted is None or (self._dry_run and wanted.worker in self._said):
            return
        if self._dry_run:
            self._said.add(wanted.worker)
        elif not await self._cordon(wanted):
            return
        told = "would be cordoned" if self._dry_run else "is cordoned"
        log.warning("%s %s: %s", wanted.worker, told, wanted.reason)
        self._done.append(
            {
                "at": when(self._clock.wall()), "action": "cordon", "subject": wanted.worker, "reason": wanted.reason,
                "dry_run": self._dry_run, "undo": f"dtf farm uncordon {wanted.worker}",
            }
        )  # fmt: skip

    async def _cordon(self, wanted: Cordon) -> bool:
        """Whether it is written: a worker that has just changed is looked at again with the next look."""
        present, seen = self._pool.workers().get(wanted.worker), self._pool.mirror.seen(Kind.WORKER, wanted.worker)
        if present is None or present.cordoned:
            return False
        record = replace(present, cordoned=True, cordoned_at=self._clock.wall(), cordoned_for=wanted.reason)
        fence = Compare(self._pool.keys.leader, "create", "=", leader_of(self._pool.mirror)[1])
        write = ChangeWorkerByFarm(worker=wanted.worker, what="cordon", record=record, seen=seen, fence=fence)
        return await self._record.answer(write, timeout=WRITE)
