"""`Reserving`: holds workers for people's reservations, by the record and the clock. A leader's."""

from __future__ import annotations

import math

from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Mirror
from dtf_lightning.farm.record.reservations.values import ReservationRecord
from dtf_lightning.farm.rules.scheduling.door import Scheduler
from dtf_lightning.farm.rules.scheduling.reserving import Held, Reserved, held_now, next_change


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

    def look(self, now: float) -> None:
        """Hold whom the reservations name now, and nobody else. `now`: seconds since the epoch."""
        if now < self.deadline:
            return
        present = reservations(self._mirror)
        held = held_now(present, now)
        for worker in sorted(self._held.keys() | held.keys()):
            if self._held.get(worker) != held.get(worker):
                self._scheduler.hold(worker, held.get(worker))
        self._held = held
        self.deadline = next_change(present, now)


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
