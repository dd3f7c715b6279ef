"""`HealthMonitor`: looks at the farm again and again, says what is wrong with it by `rules.watching`, and remembers what has changed.

Each coordinator has one, and sees what the record shows and what it measures itself: none is in another's way, and nothing is
written for it but the leader's remedies. Its history is its own, and begins when it starts.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from statistics import median
from typing import Any

from dtf_lightning.clock import Clock
from dtf_lightning.errors import DtfError, StoreError
from dtf_lightning.etcd.store import Store
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.results.history import History
from dtf_lightning.farm.results.store import ResultsBusy
from dtf_lightning.farm.results.tests.worker_runs import latest_runs
from dtf_lightning.farm.rules.health import HealthStatus
from dtf_lightning.farm.rules.watching.findings import Finding, FindingHistory, findings, worst
from dtf_lightning.farm.rules.watching.measures import Sample, measure
from dtf_lightning.farm.rules.watching.observation import Observation, SeenEtcd, WorkerErrors, errors_of
from dtf_lightning.farm.server.cluster.view import EtcdMembers, leader_of
from dtf_lightning.farm.server.models import when
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.presence import wait_for_event
from dtf_lightning.farm.server.watching.recovery import Recovery
from dtf_lightning.farm.server.watching.seeing import see_coordinators, see_queues, see_workers

log = logging.getLogger(__name__)

INTERVAL = 10.0
"""Seconds between two looks."""
ERRORS_EVERY = 3
"""Looks after which workers' errors are asked of the results again."""
READS = 5
"""Of which the median is etcd's latency."""


class HealthMonitor:
    """Runs on the coordinator's event loop.

    Args:
        room: says how full etcd and the files are (`Upkeep.status`).
        recovery: does what follows.
        alert: is given what is measured and found.
    """

    def __init__(
        self,
        store: Store,
        pool: Pool,
        clock: Clock,
        room: Callable[[], Mapping[str, Any]],
        recovery: Recovery,
        alert: Callable[[Sequence[Sample], Sequence[Finding]], Awaitable[None]],
    ) -> None:
        self._store = store
        self._pool = pool
        self._clock = clock
        self._room = room
        self._recovery = recovery
        self._alert = alert
        self._history = FindingHistory()
        self._reads: deque[float] = deque(maxlen=READS)
        self._errors: Mapping[str, WorkerErrors] = {}
        self._looks = 0
        self._found: list[Finding] = []
        self.samples: Sequence[Sample] = ()
        """What was measured last."""
        self._at: float | None = None

    async def run(self, results: History, members: Callable[[], EtcdMembers]) -> None:
        """Look again and again, until cancelled."""
        while True:
            try:
                await self.look(results, members())
            except DtfError as error:
                log.warning("how the farm is cannot be seen: %s", error)
            await wait_for_event(asyncio.Event(), INTERVAL)

    async def look(self, results: History, members: EtcdMembers) -> None:
        """Look once."""
        if self._looks % ERRORS_EVERY == 0:
            try:
                self._errors = errors_of(await asyncio.to_thread(results.ask, latest_runs))
            except ResultsBusy as error:
                log.info("workers' errors are not known: %s", error)
        self._looks += 1
        await self._read()
        seen = await self._see(results, members)
        self._found, self._at = findings(seen), self._clock.wall()
        self._history.take(self._found, self._at)
        self.samples = measure(seen, self._found)
        await self._recovery.act(self._found, seen.workers, self._history.since)
        await self._alert(self.samples, self._found)

    async def _see(self, results: History, members: EtcdMembers) -> Observation:
        now, pool = self._clock.wall(), self._pool
        told, room = results.status(), self._room()
        etcd = room["etcd"]
        counts: dict[str, int] = {}
        return Observation(
            leader=leader_of(pool.mirror)[0],
            workers=tuple(see_workers(pool, self._errors, now)),
            coordinators=tuple(see_coordinators(pool, now)),
            etcd=SeenEtcd(
                members=members.members,
                answering=members.answering,
                latency=median(self._reads) if self._reads else None,
                size=etcd["size"],
                quota=etcd["quota"],
                refusal=etcd["refuses"],
                ids=etcd["ids"],
                problem=etcd["problem"],
            ),
            queues=tuple(await see_queues(pool, now, counts)),
            tasks=counts,
            results=HealthStatus(told["health"]),
            results_reason=told["reason"],
            files_problem=room["files"]["problem"],
        )

    async def _read(self) -> None:
        """Measure a read as the record makes them."""
        began = self._clock.monotonic()
        try:
            await asyncio.to_thread(self._store.get, self._pool.keys.key(Kind.LEADER))
        except StoreError as error:
            log.info("etcd's latency is not known: %s", error)
        self._reads.append(self._clock.monotonic() - began)

    # --- what it says ------------------------------------------------------------------------------------------------

    def findings(self) -> list[dict[str, str]]:
        """What is wrong, the worst first, as the API shows it."""
        return [
            {
                "kind": one.kind, "level": one.level.value, "subject": one.subject, "reason": one.reason, "remedy": one.remedy
            }
            for one in self._found
        ]  # fmt: skip

    def changes(self) -> list[dict[str, Any]]:
        """What has changed since this coordinator began, the latest first, as the API shows it."""
        return [
            {
                "at": when(one.at), "kind": one.kind, "subject": one.subject, "before": one.before.value,
                "after": one.after.value, "reason": one.reason,
            }
            for one in self._history.changes
        ]  # fmt: skip

    def status(self) -> dict[str, Any]:
        """All of it."""
        return {
            "health": worst(self._found).value,
            "findings": self.findings(),
            "changes": self.changes(),
            "remedies": self._recovery.remedies,
            "timestamp": when(self._at),
        }
