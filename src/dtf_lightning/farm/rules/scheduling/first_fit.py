"""`FirstFit`: the obvious scheduler. Tasks in the order of rank, each on the worker that would be fullest.

Its cost grows with tasks times workers: it is for pools of a few machines, and a reference for quicker ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from dtf_lightning.farm.rules.needs import Need, lacking, quantised
from dtf_lightning.farm.rules.scheduling.door import Placement, ReadyTask, WorkerOffer

AGE = 60.0
"""Seconds of waiting that weigh as much as one step of priority."""


class FirstFit:
    """A `Scheduler`. Gangs start at once or not at all; licences are held while a task is placed."""

    def __init__(self) -> None:
        self._offers: dict[str, WorkerOffer] = {}
        self._ready: dict[str, ReadyTask] = {}
        self._placed: dict[str, tuple[ReadyTask, Placement]] = {}
        """Promised ones too."""
        self._licences: dict[str, int] = {}

    def task_ready(self, task: ReadyTask) -> None:
        """See `Scheduler`."""
        self._placed.pop(task.task, None)
        self._ready[task.task] = task

    def task_placed(self, ready: ReadyTask, workers: Sequence[str], alternative: int) -> None:
        """See `Scheduler`."""
        self._ready.pop(ready.task, None)
        self._placed[ready.task] = ready, Placement(task=ready.task, workers=tuple(workers), alternative=alternative)

    def task_gone(self, task: str) -> None:
        """See `Scheduler`."""
        self._ready.pop(task, None)
        self._placed.pop(task, None)

    def placement_refused(self, task: str) -> None:
        """See `Scheduler`."""
        if (placed := self._placed.pop(task, None)) is not None:
            self._ready[task] = placed[0]

    def worker_offers(self, offer: WorkerOffer) -> None:
        """See `Scheduler`."""
        self._offers[offer.worker] = offer

    def worker_gone(self, worker: str) -> None:
        """See `Scheduler`."""
        self._offers.pop(worker, None)

    def project(self, name: str, weight: float) -> None:
        """See `Scheduler`. Shares make no difference here."""

    def licences(self, totals: Mapping[str, int]) -> None:
        """See `Scheduler`."""
        self._licences = dict(totals)

    def decide(self, at_most: int, now: float) -> list[Placement]:
        """See `Scheduler`."""
        placements: list[Placement] = []
        for task in sorted(self._ready.values(), key=_rank):
            if len(placements) == at_most:
                break
            placement = self._place(task)
            if placement is not None:
                self.task_placed(task, placement.workers, placement.alternative)
                placements.append(placement)
        return placements

    def explain(self, task: str, now: float) -> str:
        """See `Scheduler`."""
        ready = self._ready.get(task)
        if ready is None:
            return "it is not waiting for a worker" if task in self._placed else "it is not ready"
        if not self._offers:
            return "no worker is connected"
        ahead = sum(_rank(other) < _rank(ready) for other in self._ready.values())
        behind = f"; {ahead} tasks are ahead" if ahead else ""
        for licence, number in ready.limits.items():
            if (left := self._licences_left(licence)) < number:
                return f"waits for {number} of the licence {licence!r}, {left} are free{behind}"
        capable = [offer for offer in self._offers.values() for need in ready.needs if _could(offer, need)]
        if not capable:
            name, offer = min(self._offers.items())
            missing = ", ".join(lacking(ready.needs[0], offer.devices, offer.labels))
            return f"no worker can ever do it; {name} lacks {missing or 'being open for work'}"
        wanted = ready.needs[0].amounts
        told = ", ".join(f"{amount:g} x {resource}" for resource, amount in sorted(wanted.items())) or "a worker"
        return f"waits for {told}; {len(capable)} workers could give it and are busy{behind}"

    def _place(self, task: ReadyTask) -> Placement | None:
        if any(self._licences_left(licence) < number for licence, number in task.limits.items()):
            return None
        others = [name for name in self._offers if name not in task.excluded]
        if sum(any(_could(self._offers[name], need) for need in task.needs) for name in others) < task.gang:
            task = replace(task, excluded=())
        for number, need in enumerate(task.needs):
            fitting = [
                (sum(self._free(offer).values()), offer.cost, name)
                for name, offer in self._offers.items()
                if name not in task.excluded and self._fits(offer, need)
            ]
            if len(fitting) >= task.gang:
                chosen = sorted(fitting, key=lambda one: (one[1], one[0], one[2]))[: task.gang]
                return Placement(task=task.task, workers=tuple(one[2] for one in chosen), alternative=number)
        return None

    def _free(self, offer: WorkerOffer) -> dict[str, int]:
        free = quantised(offer.devices)
        for ready, placement in self._placed.values():
            if offer.worker in placement.workers:
                for resource, amount in quantised(ready.needs[placement.alternative].amounts).items():
                    free[resource] = free.get(resource, 0) - amount
        return free

    def _fits(self, offer: WorkerOffer, need: Need) -> bool:
        if not _could(offer, need):
            return False
        there = [ready.needs[p.alternative] for ready, p in self._placed.values() if offer.worker in p.workers]
        if there and (need.exclusive or any(other.exclusive for other in there)):
            return False
        free = self._free(offer)
        return all(free.get(resource, 0) >= amount for resource, amount in quantised(need.amounts).items())

    def _licences_left(self, licence: str) -> int:
        held = sum(ready.limits.get(licence, 0) for ready, _ in self._placed.values())
        return self._licences.get(licence, 0) - held


def _rank(task: ReadyTask) -> tuple[float, float, int, str]:
    """Static: ageing at one constant rate never changes an order."""
    return (task.submitted - AGE * task.priority, -(task.expected or 0.0), task.sequence, task.task)


def _could(offer: WorkerOffer, need: Need) -> bool:
    """Whether the worker, idle, would do."""
    return offer.accepting and not lacking(need, offer.devices, offer.labels)
