"""`Pool`: what a coordinator knows of its farm: the mirror, which attempts have started, and who waits for a change.

Everything here runs on the coordinator's event loop. What is done is not kept by the mirror; the latest results are, here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dtf_lightning.errors import CoordinatorEnds
from dtf_lightning.etcd.store import KeyValue, WatchEvent
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.mirror import Change, Mirror
from dtf_lightning.farm.record.task_id import array_and_index
from dtf_lightning.farm.record.values import (
    NO_ATTEMPT,
    Attempt,
    CoordinatorRecord,
    Envelope,
    TaskSpecification,
    WorkerRecord,
)
from dtf_lightning.farm.rules.health import WorkerHealth

RECENT = 2_000
"""Results that are kept in memory."""
LIVE_STATUSES = ("waiting", "pending", "assigned", "running")
"""Of tasks that are not done: for others, for a worker, for its process to start, for its end."""


Listener = Callable[[Change], None]


def of_plan(plan: str) -> str:
    """Return the name under which `Pool.wait_for` waits for the end of a plan's tasks; no record has such a name."""
    return f"plan/{plan}"


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveTask:
    """A task that is not done."""

    task: str
    specification: TaskSpecification
    attempt: Attempt
    revision: int
    """The attempt's identity; 0 if there was none yet."""
    started: float | None
    """When this attempt started, if it is known here."""


class Pool:
    """Not thread-safe."""

    def __init__(self, keys: FarmKeys) -> None:
        self.keys = keys
        self.mirror = Mirror(keys)
        self.listeners: list[Listener] = []
        """Called for every change, in order, after the mirror shows it."""
        self.woken: list[Callable[[], None]] = []
        """Called whenever anything may look different, after it does: changes, starts, output that came."""
        self.started_listeners: list[Callable[[LiveTask], None]] = []
        """Called when a worker that is connected here says that an attempt's process runs."""
        self._started: dict[str, tuple[int, float]] = {}
        self._recent: OrderedDict[str, tuple[Envelope, int]] = OrderedDict()
        """Task -> its result, and the record's revision at which it came."""
        self._num_live: Counter[str] = Counter()
        """Plan -> how many of its tasks are not done."""
        self._changed: dict[str, set[asyncio.Event]] = {}
        self._closed = False

    # --- what the record shows ---------------------------------------------------------------------------------------

    def load(self, kvs: Iterable[KeyValue], revision: int) -> None:
        """Take in a reading of the record."""
        self._tell(self.mirror.load(kvs, revision))

    def apply(self, events: Iterable[WatchEvent]) -> None:
        """Take in what the watch has shown."""
        self._tell(self.mirror.apply(events))

    def attempt_started(self, task: str, revision: int, at: float) -> None:
        """A worker says that an attempt's process runs."""
        if self.mirror.seen(Kind.ATTEMPT, task) == revision:
            new = self._started.get(task, (0, 0.0))[0] != revision
            self._started[task] = revision, at
            if new and (live := self.live(task)) is not None and live.attempt.workers:
                for listener in self.started_listeners:
                    listener(live)
            self.wake(task)

    # --- what is known -----------------------------------------------------------------------------------------------

    def live(self, task: str) -> LiveTask | None:
        """A task that is not done."""
        held = self.mirror.get(Kind.TASK, task)
        if held is None:
            return None
        assert isinstance(held.value, TaskSpecification)
        tried = self.mirror.get(Kind.ATTEMPT, task)
        attempt, revision = NO_ATTEMPT, 0
        if tried is not None:
            assert isinstance(tried.value, Attempt)
            attempt, revision = tried.value, tried.mod_revision
        of, at = self._started.get(task, (0, 0.0))
        started = at if revision and of == revision else None
        return LiveTask(task=task, specification=held.value, attempt=attempt, revision=revision, started=started)

    def is_unborn(self, task: str) -> bool:
        """Whether this is the id of an array's instance that will come to life."""
        found = array_and_index(task)
        live = self.live(found[0]) if found is not None else None
        return found is not None and live is not None and live.attempt.born <= found[1] < live.specification.array

    def status(self, live: LiveTask) -> str:
        """What a task that is not done is at: one of `LIVE_STATUSES`."""
        if live.attempt.workers:
            return "assigned" if live.started is None else "running"
        if live.attempt.born:
            return "running"  # of an array: some of its instances do, or did
        present, told = self.mirror.all(Kind.TASK), live.specification
        return "waiting" if any((name,) in present for name in (*told.after, *told.after_any)) else "pending"

    def live_tasks(self) -> Iterator[LiveTask]:
        """All tasks that are not done, in the order in which they were accepted."""
        records = self.mirror.all(Kind.TASK).items()
        for (task,), _ in sorted(records, key=lambda item: item[1].create_revision):
            live = self.live(task)
            assert live is not None
            yield live

    def recent(self, task: str) -> Envelope | None:
        """The result of a task, if it is among the latest."""
        found = self._recent.get(task)
        return None if found is None else found[0]

    def has_shown(self, task: str) -> bool:
        """Whether the record has shown a task here: as one that is not done, or, if that was over at once, by its result."""
        return self.mirror.get(Kind.TASK, task) is not None or task in self._recent

    def all_recent(self) -> list[tuple[str, Envelope]]:
        """The latest results, oldest first."""
        return [(task, envelope) for task, (envelope, _) in self._recent.items()]

    def num_live(self, plan: str) -> int:
        """How many tasks of a plan are not done."""
        return self._num_live[plan]

    def recent_of_plan(self, plan: str, after: int) -> Iterator[tuple[str, Envelope]]:
        """Those of the latest results that are a plan's and came after a revision of the record, the latest first."""
        for task, (envelope, revision) in reversed(self._recent.items()):
            if revision <= after:
                return
            if envelope.plan == plan:
                yield task, envelope

    def workers(self) -> dict[str, WorkerRecord]:
        """All workers by name, sorted."""
        found = {}
        for (name,), held in sorted(self.mirror.all(Kind.WORKER).items()):
            assert isinstance(held.value, WorkerRecord)
            found[name] = held.value
        return found

    def health(self, worker: str) -> WorkerHealth | None:
        """How a worker's machine was when that was last recorded."""
        held = self.mirror.get(Kind.HEALTH, worker)
        if held is None:
            return None
        assert isinstance(held.value, WorkerHealth)
        return held.value

    def coordinators(self) -> dict[str, CoordinatorRecord]:
        """All coordinators by name, sorted."""
        found = {}
        for (name,), held in sorted(self.mirror.all(Kind.COORDINATOR).items()):
            assert isinstance(held.value, CoordinatorRecord)
            found[name] = held.value
        return found

    async def wait_for(self, name: str, condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until a condition about a record of this name holds; whether it does. `timeout` in seconds. Raises `CoordinatorEnds`."""
        return await self.wait_for_any((name,), condition, timeout)

    async def wait_for_any(self, names: Sequence[str], condition: Callable[[], bool], timeout: float) -> bool:
        """Wait until a condition about records of these names holds; whether it does. `timeout` in seconds. Raises `CoordinatorEnds`."""
        event = asyncio.Event()
        for name in names:
            self._changed.setdefault(name, set()).add(event)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    while not condition():
                        if self._closed:
                            raise CoordinatorEnds("this coordinator ends: ask another one")
                        await event.wait()
                        event.clear()
            return condition()
        finally:
            for name in set(names):
                waiting = self._changed[name]
                waiting.discard(event)
                if not waiting:
                    del self._changed[name]

    async def wait_for_change(self, kind: Kind, name: str, seen: int, timeout: float) -> bool:
        """Wait until a record is another than the one with the mod revision `seen`; whether it is."""
        return await self.wait_for(name, lambda: self.mirror.seen(kind, name) != seen, timeout)

    def close(self) -> None:
        """Let nobody wait any more: a request that does would hold up this coordinator's end. Idempotent."""
        self._closed = True
        for events in self._changed.values():
            for event in events:
                event.set()

    # --- the parts ---------------------------------------------------------------------------------------------------

    def _tell(self, changes: Iterable[Change]) -> None:
        for change in changes:
            name = change.names[0] if change.names else ""
            if change.kind is Kind.DONE and change.after is not None:
                assert isinstance(change.after.value, Envelope)
                self._recent[name] = change.after.value, change.revision
                if len(self._recent) > RECENT:
                    self._recent.popitem(last=False)
            elif change.kind is Kind.TASK:
                self._task_changed(name, change)
            for listener in self.listeners:
                listener(change)
            self.wake(name)

    def _task_changed(self, task: str, change: Change) -> None:
        for held, step in ((change.before, -1), (change.after, 1)):
            if held is None:
                continue
            assert isinstance(held.value, TaskSpecification)
            if plan := held.value.plan:
                self._num_live[plan] += step
                if not self._num_live[plan]:
                    del self._num_live[plan]
                self.wake(of_plan(plan))
        if change.after is None:
            self._started.pop(task, None)

    def wake(self, name: str) -> None:
        """Let those look again who wait for a condition about this name."""
        for event in self._changed.get(name, ()):
            event.set()
        for look in self.woken:
            look()
