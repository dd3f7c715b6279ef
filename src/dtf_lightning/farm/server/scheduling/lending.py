"""`Lending`: what becomes of the requests to trainings' parts: who left, who is overdue, who came back. A leader's.

Data flow: a request (`Kind.YIELD`) whose attempt is over -> a `Borrowing` among the training's, and the request is gone, in one
write -> the part has a worker again -> the borrowing says when -> the training ends, and its list with it.

Rules that this file guards:
- What is noted follows from the record alone: each request becomes one borrowing, over all leaders.
- The list is bounded (`LATEST`); how many there were in all, and for how long, is counted beside it.
- A part that has not left `OVERDUE` seconds after it was asked is taken back, whatever its worker says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from dtf_lightning.etcd.store import Compare
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Mirror
from dtf_lightning.farm.record.task_id import array_and_index
from dtf_lightning.farm.record.trainings.writes import ForgetYield, NoteBorrowings
from dtf_lightning.farm.record.values import NO_ATTEMPT, Attempt, Borrowing, Borrowings, YieldRequest
from dtf_lightning.farm.record.writes import TakeBack, Write
from dtf_lightning.farm.rules.scheduling.yielding import DEADLINE

OVERDUE = DEADLINE + 15.0
LATEST = 50
"""Borrowings in the list of a training."""
FOR_A_PRICE = 9
"""Borrowings from which it is learned how long leaves take."""
AT_ONCE = 20
"""Requests that one write deletes."""


class Lending:
    """Not thread-safe."""

    def __init__(self, mirror: Mirror, fence: Compare) -> None:
        self._mirror = mirror
        self._fence = fence
        self._handled: dict[str, int] = {}
        """Part -> the revision of the request that we deleted, or of the attempt that we took back, last."""
        self._noted: dict[str, int] = {}
        """Training -> the revision of its borrowings against which we wrote last; the mirror may not show it yet."""

    def gone(self, task: str) -> None:
        """A part, or a training, is not there any more."""
        self._handled.pop(task, None)
        self._noted.pop(task, None)

    def writes(self, now: float) -> list[Write[Any]]:
        """Return what is to be noted, forgotten and taken back now. `now`: seconds since the epoch."""
        writes: list[Write[Any]] = []
        over: dict[str, list[tuple[str, YieldRequest]]] = {}
        for (part,), held in self._mirror.all(Kind.YIELD).items():
            request = held.value
            assert isinstance(request, YieldRequest)
            tried = self._mirror.get(Kind.ATTEMPT, part)
            if tried is None or tried.mod_revision != request.revision:
                over.setdefault(training_of(part), []).append((part, request))
            elif (
                now >= request.at + OVERDUE
                and isinstance(tried.value, Attempt)
                and self._handled.get(part) != tried.mod_revision
            ):
                self._handled[part] = tried.mod_revision
                writes.append(
                    TakeBack(task=part, attempt=tried.value.lent(now), seen=tried.mod_revision, fence=self._fence)
                )
        trainings = {training for (training,) in self._mirror.all(Kind.BORROWINGS)} | over.keys()
        for training in sorted(trainings):
            writes += self._note(training, over.get(training, [])[:AT_ONCE], now)
        return writes

    def deadlines(self) -> list[float]:
        """Return when parts that were asked are overdue, in seconds since the epoch."""
        requests = (held.value for held in self._mirror.all(Kind.YIELD).values())
        return [request.at + OVERDUE for request in requests if isinstance(request, YieldRequest)]

    def leaves(self, training: str) -> list[float]:
        """Return how long the latest leaves of a training took, in seconds."""
        latest = borrowings_of(self._mirror, training).latest
        return [one.left - one.asked for one in latest[-FOR_A_PRICE:]]

    def in_all(self, training: str) -> dict[str, float]:
        """Return how often a training gave a device back, and for how long its parts were away; nothing if it never did."""
        told = borrowings_of(self._mirror, training)
        if not told.number:
            return {}
        return {"borrowings": float(told.number), "borrowed_seconds": round(told.seconds, 3)}

    def _note(self, training: str, over: list[tuple[str, YieldRequest]], now: float) -> list[Write[Any]]:
        requests = [(part, self._mirror.seen(Kind.YIELD, part)) for part, _ in over]
        if self._mirror.get(Kind.TASK, training) is None:
            new = [(part, seen) for part, seen in requests if self._handled.get(part) != seen]
            self._handled.update(new)
            return [ForgetYield(task=part, seen=seen, fence=self._fence) for part, seen in new]
        seen = self._mirror.seen(Kind.BORROWINGS, training)
        if self._noted.get(training) == seen:
            return []
        before = borrowings_of(self._mirror, training)
        left = [self._borrowing(part, request, now) for part, request in over]
        waiting = [one.part for one in (*before.latest, *left) if not one.back]
        back = {part: now for part in waiting if self._attempt(part).workers}
        after = noted(before, left, back)
        if after == before:
            return []
        self._noted[training] = seen
        return [NoteBorrowings(training=training, borrowings=after, seen=seen, over=tuple(requests), fence=self._fence)]

    def _borrowing(self, part: str, request: YieldRequest, now: float) -> Borrowing:
        left = self._attempt(part).yielded or now
        return Borrowing(
            part=part, worker=request.worker, wanted_by=request.wanted_by, asked=request.at, left=max(left, request.at)
        )

    def _attempt(self, part: str) -> Attempt:
        held = self._mirror.get(Kind.ATTEMPT, part)
        return held.value if held is not None and isinstance(held.value, Attempt) else NO_ATTEMPT


def borrowings_of(mirror: Mirror, training: str) -> Borrowings:
    """Return what a training has lent so far."""
    held = mirror.get(Kind.BORROWINGS, training)
    return held.value if held is not None and isinstance(held.value, Borrowings) else Borrowings()


def noted(before: Borrowings, left: Iterable[Borrowing], back: Mapping[str, float]) -> Borrowings:
    """Return a training's borrowings with those that have left since, and the parts that are back. Pure.

    Args:
        back: part -> when it was seen to have a device again.
    """
    new = list(left)
    latest, seconds = [], before.seconds
    for one in (*before.latest, *new):
        if not one.back and one.part in back:
            one = replace(one, back=max(back[one.part], one.left))  # noqa: PLW2901  it is one, later
            seconds += one.back - one.left
        latest.append(one)
    return Borrowings(number=before.number + len(new), seconds=seconds, latest=tuple(latest[-LATEST:]))


def training_of(part: str) -> str:
    """Return the id of a part's training; "": it is no instance of an array."""
    found = array_and_index(part)
    return found[0] if found is not None else ""
