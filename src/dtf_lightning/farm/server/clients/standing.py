"""`Standing`: what goes on by itself as long as some coordinator leads: schedules, and jobs that are split over devices."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dtf_lightning.clock import Clock
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.results.history import History
from dtf_lightning.farm.server.orchestrations.keeper import OrchestrationKeeper
from dtf_lightning.farm.server.orchestrations.orchestrations import Orchestrations
from dtf_lightning.farm.server.orchestrations.telling import OrchestrationUpdates
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.schedules.registering import Schedules
from dtf_lightning.farm.server.tasks import Tasks
from dtf_lightning.farm.server.updates.changes import Updates
from dtf_lightning.farm.settings.coordinator import CoordinatorSettings


class Standing:
    """Runs on the coordinator's event loop. It holds no truth: all of it follows from the record."""

    def __init__(
        self,
        pool: Pool,
        record: FarmRecord,
        tasks: Tasks,
        history: History,
        updates: Updates,
        clock: Clock,
        settings: CoordinatorSettings,
    ) -> None:
        self._pool = pool
        self._record = record
        self._tasks = tasks
        self._clock = clock
        self.schedules = Schedules(pool, record, tasks, history, clock)
        self.orchestrations = Orchestrations(pool, record, tasks, history, clock, settings.multi_device_orchestrator)
        self.updates = OrchestrationUpdates(pool, updates, clock.wall)

    def listen(self) -> None:
        """Hear of changes, before the record is read."""
        self.updates.listen()

    async def keep(self, epoch: Callable[[], int]) -> None:
        """Bring all of it on while this coordinator leads, until cancelled. `epoch`: returns that of its leadership; 0: it does not."""
        keeper = OrchestrationKeeper(
            self._pool,
            self._record,
            self._tasks,
            self.orchestrations.merging,
            self._clock,
            self.updates.job_of,
            epoch,
        )
        await asyncio.gather(self.schedules.keep(epoch), keeper.run())
