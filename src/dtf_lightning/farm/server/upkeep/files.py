"""`Housekeeping`: removes logs, artifacts and sources that nobody is to find any more. The leader does it.

Rules that this file guards:
- What is there is listed first, and what live tasks need is looked up then: whatever came in between is young.
- Before a thing goes it is looked at again: one that was used meanwhile stays.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection
from typing import Any

from dtf_lightning.clock import Clock
from dtf_lightning.errors import DtfError
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.schedules.values import ScheduleRecord
from dtf_lightning.farm.rules.retention import YOUNG, Keep, StoredThing, may_go
from dtf_lightning.farm.server.files import FarmFiles
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.presence import wait_for_event
from dtf_lightning.farm.settings.coordinator import RetentionSettings

log = logging.getLogger(__name__)

GIBIBYTE = 1 << 30


class Housekeeping:
    """Runs on the coordinator's event loop.

    Args:
        leads: whether this coordinator is to do it.
    """

    def __init__(
        self, files: FarmFiles, pool: Pool, settings: RetentionSettings, *, leads: Callable[[], bool], clock: Clock
    ) -> None:
        self._files = files
        self._pool = pool
        self._settings = settings
        self._leads = leads
        self._clock = clock
        self._removed = {"logs": 0, "artifacts": 0, "stdin": 0, "sources": 0}
        self._problem = ""

    def status(self) -> dict[str, Any]:
        """How much this coordinator has removed since it started, and the last problem."""
        return {"removed": dict(self._removed), "problem": self._problem}

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await wait_for_event(asyncio.Event(), self._settings.interval)
            if self._leads():
                await self.round()

    async def round(self) -> None:
        """Remove what may go now."""
        keep = self._settings
        try:
            logs = await asyncio.to_thread(lambda: list(self._files.stored_logs()))
            sources = await asyncio.to_thread(lambda: list(self._files.stored_sources()))
            artifacts = await asyncio.to_thread(self._artifacts)
            stdin = await asyncio.to_thread(lambda: list(self._files.stored_stdin()))
            live, digests, read = self._needed()
            await self._remove("logs", logs, _keep(keep.logs, keep.logs_total), live, self._files.remove_log)
            await self._remove(
                "artifacts", artifacts, _keep(keep.artifacts, keep.artifacts_total), live, self._files.artifacts.remove
            )
            await self._remove("stdin", stdin, Keep(age=keep.logs, total=None), read, self._files.remove_stdin)
            before = self._clock.wall() - YOUNG
            await self._remove(
                "sources",
                sources,
                _keep(keep.sources, keep.sources_total),
                digests,
                lambda digest: self._files.remove_source(digest, before),
            )
            self._problem = ""
        except (DtfError, OSError) as error:
            self._problem = str(error)
            log.warning("what is old cannot be removed: %s", error)

    def _artifacts(self) -> list[StoredThing]:
        return [StoredThing(name=one.task, size=one.size, used=one.newest) for one in self._files.artifacts.tasks()]

    def _needed(self) -> tuple[set[str], set[str], set[str]]:
        """Return the ids of live tasks, the digests of what they and schedules begin with, and the names of what they read."""
        live = list(self._pool.live_tasks())
        digests = {digest for one in live for digest in one.specification.stored}
        for held in self._pool.mirror.all(Kind.SCHEDULE).values():
            assert isinstance(held.value, ScheduleRecord)
            digests.update(held.value.digests)
        return {one.task for one in live}, digests, {one.specification.stdin for one in live}

    async def _remove(
        self, kind: str, things: list[StoredThing], keep: Keep, needed: Collection[str], remove: Callable[[str], object]
    ) -> None:
        names = may_go(things, keep, needed=needed, now=self._clock.wall())
        for name in names:
            await asyncio.to_thread(remove, name)
            self._removed[kind] += 1
        if names:
            log.info("%d of %d %s were removed", len(names), len(things), kind)


def _keep(age: float, total: float | None) -> Keep:
    return Keep(age=age, total=None if total is None else int(total * GIBIBYTE))
