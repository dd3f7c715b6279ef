"""`QuotaWatch`: looks at the size of etcd's database, refuses new work in time, and makes room.

Rules that this file guards:
- Every coordinator looks, and refuses by what it has seen; what is to be done does the leader, or, while nobody leads,
  whoever sees it: without leases nobody can be elected, and each step may be done twice.
- etcd is compacted below its latest revision, so that whoever has just read can watch on from there.
- The alarm is switched off only when there is room.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Any

from dtf_lightning.clock import Clock
from dtf_lightning.errors import StoreError
from dtf_lightning.etcd.maintenance import AlarmKind, StoreStatus
from dtf_lightning.etcd.store import Store
from dtf_lightning.farm.rules.quota import DatabaseSize, QuotaVerdict, Step, judge_size, may_disarm
from dtf_lightning.farm.server.presence import wait_for_event

log = logging.getLogger(__name__)

INTERVAL = 10.0
"""Seconds between two looks: at 2 MB/s, more than a farm writes, a quarter of the quota is four minutes."""
STEP_TIMEOUT = 30.0


class QuotaWatch:
    """Runs on the coordinator's event loop.

    Args:
        store: etcd.
        quota: etcd's, in bytes.
        may_act: whether this coordinator may make room now.
        interval: seconds between two looks; `None`: `INTERVAL`.
    """

    def __init__(
        self, store: Store, quota: int, *, may_act: Callable[[], bool], clock: Clock, interval: float | None = None
    ) -> None:
        self._store = store
        self._quota = quota
        self._may_act = may_act
        self._clock = clock
        self._interval = INTERVAL if interval is None else interval
        self._size: DatabaseSize | None = None
        self._seen = StoreStatus(())
        self._verdict = QuotaVerdict(refusal="", steps=())
        self._defragmented = -math.inf
        self._problem = ""

    @property
    def refusal(self) -> str:
        """Why new work is refused; "": it is taken."""
        return self._verdict.refusal

    def status(self) -> dict[str, Any]:
        """The size as it was last seen, and what follows; bytes."""
        size = self._size
        return {
            "quota": self._quota,
            "size": size.file if size is not None else None,
            "in_use": size.in_use if size is not None else None,
            "alarm": size is not None and size.alarm,
            "refuses": self.refusal,
            "members": [
                {"endpoint": one.endpoint, "version": one.version, "leads": one.leads} for one in self._seen.members
            ],
            "unreachable": dict(self._seen.unreachable),
            "problem": self._problem,
        }

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            await wait_for_event(asyncio.Event(), self._interval)

    async def look(self) -> None:
        """Look once, and do what is to be done. etcd being away changes nothing."""
        try:
            await self._judge()
            for step in self._verdict.steps if self._may_act() else ():
                log.warning("%s: %s", self._verdict.refusal or "etcd's database holds little", step.value)
                await asyncio.to_thread(self._do, step)
                await self._judge()
            self._problem = ""
        except StoreError as error:
            self._problem = str(error)
            log.warning("etcd's size: %s", error)

    async def _judge(self) -> None:
        self._size = await asyncio.to_thread(self._look)
        since = self._clock.monotonic() - self._defragmented
        self._verdict = judge_size(self._size, self._quota, since_defragmented=since)

    def _look(self) -> DatabaseSize:
        self._seen = self._store.maintenance.status()
        members = self._seen.members
        largest = max(members, key=lambda member: member.db_size)
        return DatabaseSize(
            file=largest.db_size, in_use=largest.db_size_in_use, alarm=any(member.out_of_space for member in members)
        )

    def _do(self, step: Step) -> None:
        maintenance = self._store.maintenance
        if step is Step.COMPACT:
            revision = self._store.range("\0").revision - 1
            if revision > 0:
                maintenance.compact(revision, physical=True, timeout=STEP_TIMEOUT)
        elif step is Step.DEFRAGMENT:
            self._defragmented = self._clock.monotonic()
            maintenance.defragment()
        elif step is Step.DISARM:
            if not may_disarm(self._look(), self._quota):
                log.error(
                    "etcd is full of what the farm needs: end tasks, shorten `retention`, or give it a larger quota"
                )
                return
            for alarm in maintenance.alarms():
                if alarm.kind is AlarmKind.NO_SPACE:
                    maintenance.disarm(alarm)
        else:
            raise AssertionError(step)
