"""Workers that people reserve: what is asked for is looked at, written, shown, and taken back.

Rules that this file guards:
- What is told to be written is in etcd, and shown by this coordinator's watch as far as that is in time.
- One that is over is told of for a day, and forgotten when the next one is made.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from dtf_lightning.clock import Clock
from dtf_lightning.errors import DtfError, SettingsError
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.reservations.values import ReservationRecord
from dtf_lightning.farm.record.reservations.writes import RemoveReservation, SetReservation
from dtf_lightning.farm.rules.needs import Need, lacking
from dtf_lightning.farm.rules.reserving.times import choose, overlap
from dtf_lightning.farm.server.models import when
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.scheduling.projects import projects
from dtf_lightning.farm.server.scheduling.reserving import reservations

SHOWN = 5.0
"""Seconds for the watch to show what was written."""
DAY = 86_400.0
LONGEST = 90 * DAY
MAX_RESERVATIONS = 1000


class UnknownReservation(DtfError):
    """There is none of this name."""


class ReservationKeeper:
    """Runs on the coordinator's event loop."""

    def __init__(self, pool: Pool, record: FarmRecord, clock: Clock) -> None:
        self._pool = pool
        self._record = record
        self._clock = clock

    def list(self) -> list[dict[str, Any]]:
        """Return all, by when they begin."""
        found = [(record.begin, name, record) for name, record in self._all().items()]
        return [self._shown(name, record) for _, name, record in sorted(found, key=lambda one: one[:2])]

    async def make(
        self,
        *,
        workers: Sequence[str],
        number: int,
        needs: Mapping[str, float],
        labels: Sequence[str],
        begin: float | None,
        seconds: float,
        lead: float,
        project: str,
        reason: str,
        by: str,
    ) -> dict[str, Any]:
        """Reserve workers: those that are named, or `number` of those that have what is needed.

        Args:
            begin: seconds since the epoch; `None`: now.

        Raises `SettingsError` for what can never be met, and what etcd raises.
        """
        now = self._clock.wall()
        start = now if begin is None else begin
        self._check(start, seconds, lead, project, now)
        await self._forget_old(now)
        end, present = start + seconds, reservations(self._pool.mirror)
        there = self._pool.workers()
        if workers:
            unknown = [name for name in workers if name not in there]
            if unknown:
                raise SettingsError(f"this farm knows no worker {unknown[0]!r}; it has {', '.join(there) or 'none'}")
            if refusal := overlap(workers, present, start, end):
                raise SettingsError(f"{refusal}: cancel that one, or choose another time or worker")
            chosen = tuple(dict.fromkeys(workers))
        else:
            need = Need(amounts=needs, labels=tuple(labels))
            able = [name for name, one in there.items() if not lacking(need, one.devices, one.labels)]
            busy = {name for live in self._pool.live_tasks() for name in live.attempt.workers}
            chosen, refusal = choose(number, able, present, start, end, busy)
            if refusal:
                raise SettingsError(refusal)
        record = ReservationRecord(
            workers=chosen, begin=start, end=end, lead=lead, project=project, reason=reason, by=by
        )
        name = f"r-{secrets.token_hex(4)}"
        if not await self._record.answer(SetReservation(name=name, record=record)):
            raise DtfError(f"the reservation {name} could not be made: try again")
        await self._pool.wait_for(name, lambda: self._pool.mirror.get(Kind.RESERVATION, name) is not None, SHOWN)
        return self._shown(name, record)

    async def cancel(self, name: str) -> None:
        """Take a reservation back: tasks start there again. Raises `UnknownReservation`, and what etcd raises."""
        if self._pool.mirror.get(Kind.RESERVATION, name) is None:
            known = ", ".join(self._all()) or "none"
            raise UnknownReservation(f"this farm has no reservation {name!r}; it has {known}")
        await self._remove(name)

    async def _remove(self, name: str) -> None:
        await self._record.answer(RemoveReservation(name=name))
        await self._pool.wait_for(name, lambda: self._pool.mirror.get(Kind.RESERVATION, name) is None, SHOWN)

    async def _forget_old(self, now: float) -> None:
        for name, record in self._all().items():
            if now > record.end + DAY:
                await self._remove(name)
        if len(self._all()) >= MAX_RESERVATIONS:
            raise SettingsError(f"{MAX_RESERVATIONS} reservations are all that a farm takes: cancel some")

    def _check(self, begin: float, seconds: float, lead: float, project: str, now: float) -> None:
        if not 0 < seconds <= LONGEST:
            raise SettingsError(f"a reservation lasts more than 0 s and at most 90 days, got {seconds:g} s")
        if not 0 <= lead <= LONGEST:
            raise SettingsError(f"lead must be 0 s to 90 days, got {lead:g} s")
        if begin + seconds <= now:
            raise SettingsError(f"it would be over by now: it ends at {when(begin + seconds)}, and it is {when(now)}")
        if begin > now + LONGEST:
            raise SettingsError(f"it begins at {when(begin)}, more than 90 days from now: make it later")
        if project and project not in (known := projects(self._pool.mirror)):
            raise SettingsError(f"no project is called {project!r}; there are {', '.join(known)}")

    def _all(self) -> dict[str, ReservationRecord]:
        found = {}
        for (name,), held in sorted(self._pool.mirror.all(Kind.RESERVATION).items()):
            assert isinstance(held.value, ReservationRecord)
            found[name] = held.value
        return found

    def _shown(self, name: str, record: ReservationRecord) -> dict[str, Any]:
        now = self._clock.wall()
        there = self._pool.workers()
        busy: dict[str, list[str]] = {}
        for live in self._pool.live_tasks():
            for worker in live.attempt.workers:
                if worker in record.workers and live.specification.project != record.project:
                    busy.setdefault(worker, []).append(live.task)
        state = "over" if now >= record.end else "active" if now >= record.begin else "to come"
        return {
            "reservation": name,
            "workers": list(record.workers),
            "gone": [worker for worker in record.workers if worker not in there],
            "begin": when(record.begin),
            "end": when(record.end),
            "lead": record.lead,
            "project": record.project,
            "reason": record.reason,
            "by": record.by,
            "state": state,
            "running": dict(sorted(busy.items())) if state == "active" else {},
        }
