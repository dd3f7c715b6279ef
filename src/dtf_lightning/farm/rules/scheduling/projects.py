"""Projects, their queues of waiting tasks, and their shares of the farm.

Rules that this file guards:
- A rank is static: `(submission - priority * age, -expected, sequence, id)`. Waiting at one constant rate never changes an
  order, so nothing has to be sorted again as time goes by; and as submissions go on, no later task stays before an
  earlier one for ever. Where nobody knows how long a task takes, it goes before those of its plan that are known: a long
  one that is found out at the end would make everybody wait.
- A queue holds one project's tasks of one shape, by rank: only its first task may start.
- A project's share is the largest part of a resource that it holds, over its weight: dominant resource fairness
  (Ghodsi et al. 2011).
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Iterable, Mapping

from dtf_lightning.farm.rules.scheduling.shapes import Shape, ShapeKey

Rank = tuple[float, float, int, str]

_SLACK = 64
"""Entries of cancelled tasks that a queue keeps at least before it is made anew."""


class Task:
    """One task that waits or was placed."""

    __slots__ = ("expected", "key", "name", "near", "plan", "project", "rank", "speeds")

    def __init__(
        self,
        name: str,
        project: str,
        plan: str,
        rank: Rank,
        expected: float | None,
        key: ShapeKey,
        near: tuple[str, ...],
        speeds: Mapping[str, float],
    ) -> None:
        self.name = name
        self.project = project
        self.plan = plan
        self.rank = rank
        self.expected = expected
        self.key = key
        self.near = near
        self.speeds = speeds


class Queue:
    """One project's waiting tasks of one shape."""

    __slots__ = ("changed", "heap", "listed", "overtaken", "passed", "project", "shape", "since", "started", "tasks")

    def __init__(self, project: Project, shape: Shape) -> None:
        self.project = project
        self.shape = shape
        self.tasks: dict[str, Task] = {}
        self.heap: list[Rank] = []
        """Ranks of its tasks, and of some that are gone."""
        self.listed: Rank | None = None
        """The rank under which the project lists it."""
        self.changed = True
        """Its first task is another one than when it last found nothing."""
        self.started = False
        """Whether a task of it started since the last look for queues that were overtaken."""
        self.overtaken = 0
        """Starts of others before it, where it was its turn."""
        self.passed = 0
        """Starts of tasks of a later rank."""
        self.since: float | None = None
        """When the first of these was seen."""

    def push(self, task: Task) -> None:
        self.tasks[task.name] = task
        heapq.heappush(self.heap, task.rank)

    def discard(self, name: str) -> None:
        """A waiting task is gone or was started."""
        del self.tasks[name]
        if len(self.heap) > 2 * len(self.tasks) + _SLACK:
            self.heap = [task.rank for task in self.tasks.values()]
            heapq.heapify(self.heap)

    def first(self) -> Task | None:
        """The task that is next."""
        heap, tasks = self.heap, self.tasks
        while heap:
            task = tasks.get(heap[0][3])
            if task is not None and task.rank is heap[0]:
                return task
            heapq.heappop(heap)
        return None

    def listed_task(self) -> Task:
        """The task under which the project lists it."""
        assert self.listed is not None
        return self.tasks[self.listed[3]]


class Project:
    """One project: what it holds, and its queues by the ranks of their first tasks."""

    __slots__ = ("cursor", "held", "listing", "name", "queues", "ranks", "share", "weight")

    def __init__(self, name: str) -> None:
        self.name = name
        self.weight = 1.0
        self.held: dict[str, int] = {}
        """Resource -> thousandths that its tasks hold."""
        self.share = 0.0
        self.queues: dict[ShapeKey, Queue] = {}
        self.ranks: list[Rank] = []
        """Sorted; `listing` has the queues in the same order."""
        self.listing: list[Queue] = []
        self.cursor = 0
        """Queues before this one have found nothing in this round."""

    def list_anew(self, queue: Queue) -> None:
        """Put a queue where its first task belongs."""
        first = queue.first()
        rank = None if first is None else first.rank
        if rank is queue.listed:
            return
        if queue.listed is not None:
            index = bisect_left(self.ranks, queue.listed)
            while self.listing[index] is not queue:
                index += 1
            del self.ranks[index], self.listing[index]
        if rank is not None:
            index = bisect_left(self.ranks, rank)
            self.ranks.insert(index, rank)
            self.listing.insert(index, queue)
        queue.listed = rank
        queue.changed = True

    def hold(self, amounts: Iterable[tuple[str, int]], sign: int, capacity: Mapping[str, int]) -> None:
        """Its tasks hold this more, or with `sign` -1 less."""
        for name, amount in amounts:
            self.held[name] = self.held.get(name, 0) + sign * amount
        self.update_share(capacity)

    def update_share(self, capacity: Mapping[str, int]) -> None:
        """What it holds, or what there is, has changed. What nobody offers counts for nothing."""
        share = 0.0
        for name, held in self.held.items():
            total = capacity.get(name, 0)
            if total and held / total > share:
                share = held / total
        self.share = share / self.weight
