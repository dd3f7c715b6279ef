"""Tests whose failures do not count for a while, as the record has them.

Rules that this file guards:
- What is told to be written is in etcd, and shown by this coordinator's watch as far as that is in time.
- One that has expired is told of for `REMEMBERED`, and forgotten when the next one is added.
"""

from __future__ import annotations

from typing import Any

from dtf_lightning.clock import Clock
from dtf_lightning.errors import DtfError, SettingsError, StoreUnavailable
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.quarantine.values import QuarantineRecord
from dtf_lightning.farm.record.quarantine.writes import RemoveQuarantine, SetQuarantine
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.server.models import when
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.verdicts.quarantine import DAY, check

SHOWN = 5.0
"""Seconds for the watch to show what was written."""
TRIES = 10
MAX_QUARANTINED = 5_000
"""Tests of one farm."""
REMEMBERED = 30 * DAY
"""Seconds for which it is told of a quarantine that it has expired."""


class NotInQuarantine(DtfError):
    """It counts anyway."""


class QuarantineKeeper:
    """Runs on the coordinator's event loop."""

    def __init__(self, pool: Pool, record: FarmRecord, clock: Clock) -> None:
        self._pool = pool
        self._record = record
        self._clock = clock

    def list(self, project: str = "") -> dict[str, Any]:
        """Return the tests in `quarantine`, and those whose has `expired` lately. `project`: only of this one."""
        found = [
            self._shown(of, test, record)
            for of, test in sorted(self._pool.mirror.all(Kind.QUARANTINE))
            if project in ("", of) and (record := self._of(of, test)) is not None
        ]
        return {
            "quarantine": [one for one in found if one["active"]],
            "expired": [one for one in found if not one["active"]],
        }

    async def add(self, project: str, test: str, *, owner: str, reason: str, seconds: float, by: str) -> dict[str, Any]:
        """Let a test fail for so many seconds from now. Raises `SettingsError`, and what etcd raises."""
        check(test=test, owner=owner, reason=reason, seconds=seconds)
        await self._forget_old()
        if self._of(project, test) is None and len(self._pool.mirror.all(Kind.QUARANTINE)) >= MAX_QUARANTINED:
            raise SettingsError(f"{MAX_QUARANTINED} tests are in quarantine, which is all that a farm takes: mend some")
        now = self._clock.wall()
        record = QuarantineRecord(owner=owner, reason=reason, added=now, expires=now + seconds, by=by)
        for _ in range(TRIES):
            seen = self._pool.mirror.seen(Kind.QUARANTINE, project, test)
            made = await self._record.answer(SetQuarantine(project=project, test=test, record=record, seen=seen))
            await self._changed(project, test, seen, SHOWN if made else 1.0)
            if made:
                return self._shown(project, test, record)
        raise StoreUnavailable(f"the quarantine of {test} changes all the time, try again")

    async def remove(self, project: str, test: str) -> None:
        """Let a test count again. Raises `NotInQuarantine`, and what etcd raises."""
        for _ in range(TRIES):
            if self._of(project, test) is None:
                raise NotInQuarantine(f"the test {test!r} of the project {project} is in no quarantine")
            if await self._remove(project, test):
                return
        raise StoreUnavailable(f"the quarantine of {test} changes all the time, try again")

    async def _remove(self, project: str, test: str) -> bool:
        seen = self._pool.mirror.seen(Kind.QUARANTINE, project, test)
        gone = await self._record.answer(RemoveQuarantine(project=project, test=test, seen=seen))
        await self._changed(project, test, seen, SHOWN if gone else 1.0)
        return gone

    async def _forget_old(self) -> None:
        for project, test in tuple(
            self._pool.mirror.all(Kind.QUARANTINE)
        ):  # what is removed meanwhile must not disturb it
            record = self._of(project, test)
            if record is not None and self._clock.wall() > record.expires + REMEMBERED:
                await self._remove(project, test)

    async def _changed(self, project: str, test: str, seen: int, timeout: float) -> None:
        mirror = self._pool.mirror
        await self._pool.wait_for(project, lambda: mirror.seen(Kind.QUARANTINE, project, test) != seen, timeout)

    def _of(self, project: str, test: str) -> QuarantineRecord | None:
        held = self._pool.mirror.get(Kind.QUARANTINE, project, test)
        if held is None:
            return None
        assert isinstance(held.value, QuarantineRecord)
        return held.value

    def _shown(self, project: str, test: str, record: QuarantineRecord) -> dict[str, Any]:
        return {
            "project": project,
            "test": test,
            "owner": record.owner,
            "reason": record.reason,
            "added": when(record.added),
            "expires": when(record.expires),
            "active": self._clock.wall() < record.expires,
            "by": record.by,
        }
