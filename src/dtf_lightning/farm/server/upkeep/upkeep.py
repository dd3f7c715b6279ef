"""`Upkeep`: all that keeps a farm from filling up, whether there is room for new work, and who looks what is wrong."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

from dtf_lightning.clock import Clock
from dtf_lightning.etcd.store import Store
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.results.history import History
from dtf_lightning.farm.rules.quota import MEBIBYTE, ids_refusal
from dtf_lightning.farm.server.alerting.making import make_alerts
from dtf_lightning.farm.server.cluster.view import EtcdMembers
from dtf_lightning.farm.server.files import FarmFiles
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.presence import CoordinatorPlace
from dtf_lightning.farm.server.scaling.making import scaler_of
from dtf_lightning.farm.server.upkeep.files import Housekeeping
from dtf_lightning.farm.server.upkeep.quota import QuotaWatch
from dtf_lightning.farm.server.watching.exposition import Exposition
from dtf_lightning.farm.server.watching.monitor import HealthMonitor
from dtf_lightning.farm.server.watching.recovery import Recovery


class Upkeep:
    """Runs on the coordinator's event loop.

    Args:
        epoch: of the leadership by which this coordinator decides; 0: it does not lead.
    """

    def __init__(
        self,
        store: Store,
        record: FarmRecord,
        files: FarmFiles,
        pool: Pool,
        place: CoordinatorPlace,
        *,
        epoch: Callable[[], int],
        clock: Clock,
    ) -> None:
        settings = place.settings

        def leads() -> bool:
            return epoch() > 0

        quota = int(settings.etcd.quota * MEBIBYTE)

        def may_act() -> bool:
            return leads() or pool.mirror.get(Kind.LEADER) is None

        self._quota = QuotaWatch(store, quota, may_act=may_act, clock=clock)
        self._files = Housekeeping(files, pool, settings.retention, leads=leads, clock=clock)
        self._rate = EndRate(clock.monotonic())
        self._clock = clock
        self._quota_bytes = quota
        self._retention = settings.retention.tombstones_kept
        recovery = Recovery(record, pool, clock, leads=leads, dry_run=settings.recovery.dry_run)
        self._alerting, self.alerts = make_alerts(pool, record, clock, place, epoch)
        self.monitor = HealthMonitor(store, pool, clock, self.status, recovery, self._alerting.look)
        self.exposition = Exposition(lambda: self.monitor.samples, leads, lambda: connected_to(pool, place.name))
        pool.listeners.append(self.exposition.changed)
        self.scaler = scaler_of(record, pool, place, clock, epoch)
        self._scaling_interval = settings.scaling.interval
        self.look = self._quota.look
        self.tidy = self._files.round

    @property
    def refusal(self) -> str:
        """Why new work is refused; "": it is taken."""
        return self._quota.refusal

    def task_ended(self) -> None:
        """A task has ended, whose id will be remembered."""
        self._rate.ended(self._clock.monotonic())

    def status(self) -> dict[str, Any]:
        """How full everything is."""
        rate = self._rate.per_second(self._clock.monotonic())
        warning = ids_refusal(rate, self._retention, self._quota_bytes)
        return {"etcd": {**self._quota.status(), "ids": warning}, "files": self._files.status()}

    async def run(self, results: History, members: Callable[[], EtcdMembers]) -> None:
        """Look after it, and at how the farm is, until cancelled."""
        jobs = [self._quota.run(), self._files.run(), self.monitor.run(results, members), self._alerting.run()]
        if self.scaler.pools:
            jobs.append(self.scaler.run(self._scaling_interval))
        await asyncio.gather(*jobs)


def connected_to(pool: Pool, coordinator: str) -> int:
    """Return how many workers a coordinator holds the connections of."""
    return sum(record.coordinator == coordinator for record in pool.workers().values())


class EndRate:
    """How many tasks end a second, over the last hours: what ended before counts half as much with every `HALF_LIFE`."""

    HALF_LIFE = 3600.0

    def __init__(self, now: float) -> None:
        self._began = now
        self._at = now
        self._count = 0.0

    def ended(self, now: float) -> None:
        """One has ended. `now`: monotonic seconds."""
        self._count = self._faded(now) + 1
        self._at = now

    def per_second(self, now: float) -> float:
        """The rate; 0 in the first minute, of which nothing can be said."""
        if now - self._began < 60.0:
            return 0.0
        weight: float = (1 - 0.5 ** ((now - self._began) / self.HALF_LIFE)) * self.HALF_LIFE / math.log(2)
        return self._faded(now) / weight

    def _faded(self, now: float) -> float:
        return float(self._count * 0.5 ** ((now - self._at) / self.HALF_LIFE))
