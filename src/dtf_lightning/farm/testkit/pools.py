"""A pool that scales, in simulated time: tasks arrive, workers come late, and the rule of `rules.scaling` decides. Deterministic."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dtf_lightning.farm.rules.scaling.decision import PoolDecision, decide
from dtf_lightning.farm.rules.scaling.observation import PoolLimits, PoolWorker, SeenPool

DAY = 86_400.0
END, COME = 0, 1


@dataclass(frozen=True, kw_only=True)
class PlayedTask:
    """A task that takes one worker. Times are seconds since the simulation began."""

    at: float
    seconds: float
    expected: float | None = None
    """How long the farm takes it to last; `None`: as long as it does."""


@dataclass(kw_only=True)
class PlayedPool:
    """What came of a simulation."""

    waits: list[float] = field(default_factory=list)
    """Of each task that has started, in the order in which they did."""
    worker_seconds: float = 0.0
    busy_seconds: float = 0.0
    """Of these, those in which a task ran."""
    spent: dict[int, float] = field(default_factory=dict)
    """Day -> cost."""
    left: int = 0
    """Tasks that had not ended."""
    series: list[tuple[float, int, int]] = field(default_factory=list)
    """(time, workers, tasks that wait) at each look."""


@dataclass(kw_only=True)
class _Worker:
    name: str
    since: float
    """When it came, or was idle last."""
    task: PlayedTask | None = None
    leaving: bool = False


Watch = Callable[[float, SeenPool, PoolDecision], None]


class PoolSimulation:
    """Plays one pool.

    Args:
        limits: the pool's at a time.
        start_delay: seconds from the asking for a worker to its coming.
        watch: is called with each look.
    """

    def __init__(
        self,
        tasks: Sequence[PlayedTask],
        limits: Callable[[float], PoolLimits],
        *,
        start_delay: float,
        interval: float = 30.0,
        watch: Watch | None = None,
    ) -> None:
        self.told = PlayedPool()
        self._tasks = deque(sorted(tasks, key=lambda task: task.at))
        self._limits = limits
        self._delay = start_delay
        self._interval = interval
        self._watch = watch
        self._waiting: deque[PlayedTask] = deque()
        self._workers: dict[str, _Worker] = {}
        self._events: list[tuple[float, int, int, str]] = []
        """(time, what, number, worker)."""
        self._starting = 0
        self._number = 0
        self._started = self._drained = -math.inf
        self._counted = 0.0

    def run(self, until: float) -> PlayedPool:
        """Play from 0 until a time."""
        look = 0.0
        while look < until:
            self._look(look)
            look += self._interval
            self._play(min(look, until))
        self.told.left = len(self._waiting) + sum(worker.task is not None for worker in self._workers.values())
        return self.told

    def _play(self, until: float) -> None:
        """What happens by itself before the next look: tasks arrive and end, workers come."""
        while True:
            arrival = self._tasks[0].at if self._tasks else math.inf
            event = self._events[0][0] if self._events else math.inf
            if min(arrival, event) > until:
                break
            if arrival <= event:
                self._count(arrival)
                self._waiting.append(self._tasks.popleft())
                self._hand_out(arrival)
                continue
            at, what, _, name = heapq.heappop(self._events)
            self._count(at)
            if what == COME:
                self._starting -= 1
                self._workers[name] = _Worker(name=name, since=at)
            else:
                worker = self._workers[name]
                worker.task, worker.since = None, at
                if worker.leaving:
                    del self._workers[name]
            self._hand_out(at)
        self._count(until)

    def _hand_out(self, at: float) -> None:
        for worker in self._workers.values() if self._waiting else ():
            if worker.task is None and not worker.leaving and self._waiting:
                worker.task = task = self._waiting.popleft()
                self.told.waits.append(at - task.at)
                self._number += 1
                heapq.heappush(self._events, (at + task.seconds, END, self._number, worker.name))

    def _count(self, at: float) -> None:
        paid = at - self._counted
        number = len(self._workers) + self._starting
        self.told.worker_seconds += paid * number
        self.told.busy_seconds += paid * sum(worker.task is not None for worker in self._workers.values())
        day = int(self._counted // DAY)
        cost = self._limits(self._counted).seconds_cost
        self.told.spent[day] = self.told.spent.get(day, 0.0) + paid * number * cost
        self._counted = at

    def _look(self, now: float) -> None:
        limits = self._limits(now)
        seconds = [task.seconds if task.expected is None else task.expected for task in self._waiting]
        seen = SeenPool(
            limits=limits,
            workers=tuple(
                PoolWorker(
                    name=worker.name,
                    used=float(worker.task is not None),
                    busy=worker.task is not None,
                    idle=0.0 if worker.task is not None else now - worker.since,
                    leaving=worker.leaving,
                )
                for worker in self._workers.values()
            ),
            starting=self._starting,
            waiting=len(seconds),
            backlog=sum(seconds),
            width=float(len(seconds)),
            widest=1.0 if seconds else 0.0,
            oldest=now - self._waiting[0].at if seconds else 0.0,
            since_start=now - self._started,
            since_drain=now - self._drained,
            spent=self.told.spent.get(int(now // DAY), 0.0),
        )
        decision = decide(seen)
        self.told.series.append((now, len(self._workers) + self._starting, len(seconds)))
        if self._watch is not None:
            self._watch(now, seen, decision)
        for _ in range(decision.start):
            self._number += 1
            self._starting += 1
            self._started = now
            heapq.heappush(self._events, (now + self._delay, COME, self._number, f"w{self._number}"))
        for name in decision.drain:
            self._drained = now
            self._workers[name].leaving = True
            if self._workers[name].task is None:
                del self._workers[name]
