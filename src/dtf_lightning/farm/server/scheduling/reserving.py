"""`Reserving`: holds workers for people's reservations, by the record and the clock. A leader's.

What runs on a reserved worker goes on, but for parts of trainings: where a training has more than it keeps, those are asked to give
their devices back when the reservation begins, once by each leader.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from dtf_lightning.etcd.store import Compare
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Mirror
from dtf_lightning.farm.record.reservations.values import ReservationRecord
from dtf_lightning.farm.record.trainings.writes import AskToYield
from dtf_lightning.farm.record.values import Attempt, TaskSpecification, YieldRequest
from dtf_lightning.farm.rules.reserving.times import Held, Reserved, held_now, next_change
from dtf_lightning.farm.rules.scheduling.door import Scheduler
from dtf_lightning.farm.server.scheduling.lending import training_of


class Reserving:
    """Not thread-safe."""

    def __init__(self, mirror: Mirror, scheduler: Scheduler) -> None:
        self.deadline = -math.inf
        """When it must look again, in seconds since the epoch."""
        self._mirror = mirror
        self._scheduler = scheduler
        self._held: dict[str, Held] = {}

    def changed(self) -> None:
        """The record shows other reservations."""
        self.deadline = -math.inf

    def look(self, now: float, fence: Compare) -> list[AskToYield]:
        """Hold whom the reservations name now, and nobody else; returns whom to ask to leave.

        Args:
            now: seconds since the epoch.
            fence: of the leadership.
        """
        if now < self.deadline:
            return []
        present = reservations(self._mirror)
        held = held_now(present, now)
        for worker in sorted(self._held.keys() | held.keys()):
            if self._held.get(worker) != held.get(worker):
                self._scheduler.hold(worker, held.get(worker))
        begun = {worker: one for worker, one in held.items() if one.until <= now and self._held.get(worker) != one}
        self._held = held
        self.deadline = next_change(present, now)
        names = {worker: one.name for one in present for worker in one.workers if one.begin <= now < one.end}
        return self._leavers(begun, names, now, fence) if begun else []

    def _leavers(
        self, begun: Mapping[str, Held], names: Mapping[str, str], now: float, fence: Compare
    ) -> list[AskToYield]:
        """Requests to parts of trainings on workers whose reservation has begun, as far as their trainings have more than they keep."""
        running: Counter[str] = Counter()
        there: list[tuple[str, int, str, int]] = []
        for (part,), tried in sorted(self._mirror.all(Kind.ATTEMPT).items()):
            told = self._mirror.get(Kind.TASK, part)
            attempt, asked = tried.value, None if told is None else told.value
            if not isinstance(attempt, Attempt) or not isinstance(asked, TaskSpecification):
                continue
            if not attempt.workers or not asked.training or asked.array:
                continue
            running[asked.array_id] += 1
            held = begun.get(attempt.workers[0])
            if held is not None and held.project != asked.project:
                there.append((part, tried.mod_revision, attempt.workers[0], asked.training))
        writes = []
        for part, revision, worker, kept in there:
            training = training_of(part)
            shown = self._mirror.get(Kind.YIELD, part)
            if shown is not None and isinstance(shown.value, YieldRequest) and shown.value.revision == revision:
                continue
            if running[training] > kept:
                running[training] -= 1
                request = YieldRequest(revision=revision, wanted_by=names[worker], at=now, worker=worker)
                seen = self._mirror.seen(Kind.YIELD, part)
                writes.append(AskToYield(task=part, request=request, seen=seen, fence=fence))
        return writes


def reservations(mirror: Mirror) -> list[Reserved]:
    """Return all reservations, by their names."""
    found = []
    for (name,), kept in sorted(mirror.all(Kind.RESERVATION).items()):
        record = kept.value
        assert isinstance(record, ReservationRecord)
        found.append(
            Reserved(
                name=name,
                workers=record.workers,
                begin=record.begin,
                end=record.end,
                lead=record.lead,
                project=record.project,
            )
        )
    return found
