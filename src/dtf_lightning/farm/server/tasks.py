"""What clients may ask of tasks: submit, look, wait, cancel, read output. One object for a coordinator's routes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dtf_lightning.clock import Clock
from dtf_lightning.errors import DtfError, SettingsError, StoreUnavailable
from dtf_lightning.etcd.store import Store
from dtf_lightning.farm.record.array_writes import instance_of
from dtf_lightning.farm.record.codec import decode
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.task_id import array_and_index, check_task_id, instance_id
from dtf_lightning.farm.record.values import (
    NO_ATTEMPT,
    Envelope,
    FailedAttempt,
    TaskOutcome,
    TaskSpecification,
    Tombstone,
)
from dtf_lightning.farm.record.writes import Cancellation, Submission, Submit, Submitted
from dtf_lightning.farm.rules.arrays import GENERATION, Tally
from dtf_lightning.farm.rules.dependencies import dependencies_first, find_cycle
from dtf_lightning.farm.server import models
from dtf_lightning.farm.server.clients.keys import KnownRequests, submit_keyed
from dtf_lightning.farm.server.envelopes import ended_without_attempt
from dtf_lightning.farm.server.files import FarmFiles
from dtf_lightning.farm.server.pool import LiveTask, Pool, of_plan
from dtf_lightning.farm.server.scheduling.endings import ending_of
from dtf_lightning.farm.server.scheduling.projects import who_lacks_what, why_no_room_for, why_refused
from dtf_lightning.farm.settings.coordinator import SKEW

SHOWN = 5.0
"""Seconds for the watch to show what was written."""
WRITE = 3.0
"""Seconds for etcd to take a client's wish: less than the client waits for an answer, which may be "not now"."""
POLL = 0.2
"""Seconds between two looks at output that another coordinator stores."""
CHUNK = 256 * 1024
PAGE = 2_000
"""Keys per answer of etcd."""
CANCELLED_AT_ONCE = 1_000
"""Tasks of a plan in one request."""
NO_PICKLE = (
    "this farm takes no functions that travel by cloudpickle; set `allow_pickle: true` in the section `security` of "
    "coordinator.yaml (`dtf farm up --allow-pickle`), or call the function by its name (`call: package.module:function`)"
)


class UnknownTask(DtfError):
    """There is no such task."""


class TooManyTasks(DtfError):
    """The farm takes no more tasks for now."""


class NoRoom(DtfError):
    """The farm takes no new work until there is room in etcd."""


@dataclass(frozen=True, kw_only=True)
class SubmissionLimits:
    """What a farm accepts."""

    max_live: int
    """Tasks that are not done, above which no more are taken: each costs memory in every coordinator."""
    ids: float
    """Seconds for which the record remembers ids."""
    refusal: Callable[[], str]
    """Returns why no new work is taken now; "": it is."""
    allow_pickle: bool = False
    """Whether functions that travel by cloudpickle are taken."""


def _what_it_needs(specification: TaskSpecification) -> str:
    """Return the same for tasks that the same workers can do."""
    return repr(
        (
            specification.needs,
            specification.secrets and specification.project,
            specification.secrets,
            specification.gang,
        )
    )


def _submitted(verdict: Submitted, warning: str) -> dict[str, Any]:
    told: dict[str, Any] = {"task_id": verdict.task, "submission": verdict.submission.value}
    return told | ({"warning": warning} if warning else {})


class Tasks:
    """Runs on the coordinator's event loop.

    Args:
        explain: says why a task that is not done does not run; `None` where another coordinator leads.
        archived: returns a result that etcd has forgotten; called in a thread.
        limits: of what is accepted.
    """

    def __init__(
        self,
        pool: Pool,
        record: FarmRecord,
        store: Store,
        files: FarmFiles,
        clock: Clock,
        explain: Callable[[str], str | None],
        archived: Callable[[str], Envelope | None],
        *,
        limits: SubmissionLimits,
    ) -> None:
        self._limits = limits
        self.files = files
        self._pool = pool
        self._record = record
        self._store = store
        self._clock = clock
        self._explain = explain
        self._archived = archived
        self.known = KnownRequests(pool, self.envelope, self.outcome)
        """What tasks were asked for."""
        self._log_sizes: dict[str, dict[tuple[int, int], int]] = {}
        """By task, and by revision and rank, of output that came through this coordinator, while its task is not done."""

    # --- submitting --------------------------------------------------------------------------------------------------

    async def submit(self, requests: Sequence[models.TaskRequest], *, strict: bool = False) -> list[dict[str, Any]]:
        """Accept tasks as clients ask for them. Returns what became of each. Raises as `accept`.

        `strict`: raise `SettingsError` where no worker that is there could do one of them; none is accepted then.
        """
        now = self._clock.wall()
        by_id = {request.task_id: request for request in requests}
        if len(by_id) < len(requests):
            raise SettingsError("two tasks of one submission have the same task_id")
        specifications = {task: request.specification(now) for task, request in by_id.items()}
        if strict:
            self.check_able(specifications)
        return await self.accept(specifications)

    async def accept(self, specifications: Mapping[str, TaskSpecification]) -> list[dict[str, Any]]:
        """Accept tasks, by their ids, which are never lost from then on. Returns what became of each, in order.

        Raises `SettingsError` for what cannot work, `TooManyTasks`, and what etcd raises; then some of the tasks may have
        been accepted, and submitting the same again is safe.
        """
        for task in specifications:
            self.check_id(task)
        if refusal := self._limits.refusal():
            raise NoRoom(f"no new work is taken for now: {refusal}. What was accepted goes on; ask again later")
        if len(self._pool.mirror.all(Kind.TASK)) + len(specifications) > self._limits.max_live:
            raise TooManyTasks(
                f"{self._limits.max_live} tasks are waiting or running, which is all that this farm takes at once"
            )
        if refusal := why_no_room_for(self._pool.mirror, specifications):
            raise TooManyTasks(refusal)
        after = {task: (*asked.after, *asked.after_any) for task, asked in specifications.items()}
        if (cycle := find_cycle(after)) is not None:
            raise SettingsError(f"tasks come after each other in a circle: {' after '.join(cycle)}")
        await self._check_known({name for names in after.values() for name in names} - specifications.keys())
        self.check_possible(specifications)
        verdicts = await submit_keyed(specifications, dependencies_first(after), self._write, self.known)
        new = [task for task, verdict in verdicts.items() if verdict.submission is Submission.NEW]
        if new:
            last = new[-1]
            await self._pool.wait_for(last, lambda: self._pool.has_shown(last), SHOWN)
        # Thousands that are alike are looked at once, since each look is at every worker.
        warnings: dict[str, str] = {}
        told: list[dict[str, Any]] = []
        for task, specification in specifications.items():
            alike = _what_it_needs(specification)
            if alike not in warnings:
                warnings[alike] = who_lacks_what(self._pool.mirror, self._pool.workers(), specification)
            told.append(_submitted(verdicts[task], warnings[alike]))
        return told

    async def _write(self, specifications: Mapping[str, TaskSpecification]) -> list[Submitted]:
        writes = [Submit(task=task, specification=asked) for task, asked in specifications.items()]
        return await self._record.answers(writes, timeout=WRITE)

    def check_able(self, specifications: Mapping[str, TaskSpecification]) -> None:
        """Raise `SettingsError` where no worker that is there could do one of these tasks."""
        for task, specification in specifications.items():
            if lacks := who_lacks_what(self._pool.mirror, self._pool.workers(), specification):
                raise SettingsError(f"task {specification.name or task}: {lacks}")

    def check_possible(self, specifications: Mapping[str, TaskSpecification]) -> None:
        """Raise `SettingsError` for a project, a licence or files that are not there."""
        for task, specification in specifications.items():
            if specification.is_pickled and not self._limits.allow_pickle:
                raise SettingsError(f"task {specification.name or task}: {NO_PICKLE}")
            if why := why_refused(self._pool.mirror, specification):
                raise SettingsError(f"task {specification.name or task}: {why}")
            for digest in specification.stored:
                if self.files.source(digest) is None:
                    raise SettingsError(f"the source {digest} of {task} is not here: send it first")

    def check_id(self, name: str) -> None:
        """Raise `SettingsError` for an id of which the record could not tell whether it is new."""
        check_task_id(name, self._clock.wall(), self._limits.ids, SKEW)

    async def _check_known(self, names: Iterable[str]) -> None:
        unknown = [name for name in sorted(names) if self._pool.mirror.get(Kind.TASK, name) is None]
        for name in unknown:
            if self._pool.is_unborn(name):
                continue
            if self._pool.recent(name) is None and await self.outcome(name) is None and self._pool.live(name) is None:
                raise SettingsError(f"a task comes after {name!r}, which this farm does not know")

    # --- looking -----------------------------------------------------------------------------------------------------

    async def task(self, task: str) -> dict[str, Any]:
        """Return a task as the API shows it. Raises as `_catch_up`, and what etcd raises."""
        if (live := self._pool.live(task)) is not None:
            return self.show(live)
        found = self._pool.recent(task) or await self._read_done(task)
        if isinstance(found, Envelope):
            return models.whole_task(task, found)
        if (live := self._pool.live(task)) is not None:
            return self.show(live)
        if (archived := await asyncio.to_thread(self._archived, task)) is not None:
            return models.whole_task(task, archived)
        if found is None:
            return await self._unborn(task)
        return {"task_id": task, "status": found.outcome.value, "metadata": {"archived": models.when(found.archived)}}

    async def _unborn(self, task: str) -> dict[str, Any]:
        """Return an instance of an array that has not come to life, and perhaps never will. Raises `UnknownTask`."""
        array, index = array_and_index(task) or ("", -1)
        if (live := self._pool.live(array)) is not None and index < live.specification.array:
            spec = instance_of(array, live.specification, index)
            told = replace(live, task=task, specification=spec, attempt=NO_ATTEMPT, revision=0)
            return models.live_task(
                told, status="pending", reason=f"instance {index} of the array {array} has not begun"
            )
        ended = (self._pool.recent(array) or await self._read_done(array)) if array else None
        if ended is None:
            await self._catch_up(task, array)
            return await self.task(task)
        reason = f"the array {array} ended as {ended.outcome.value} before this instance began"
        return {"task_id": task, "status": TaskOutcome.CANCELLED.value, "error": reason, "metadata": {"reason": reason}}

    async def tally(self, array: str, count: int) -> Tally:
        """Say how all `count` instances of an array ended. Raises what etcd raises."""
        outcomes: dict[str, TaskOutcome] = {}
        worst: int | None = None
        metrics: dict[str, Mapping[str, float]] = {}
        for kind in (Kind.DONE, Kind.TOMBSTONE):  # in this order: what is archived meanwhile is found twice, not never
            prefix = self._pool.keys.key(kind, array)[:-6]
            for kv in (await asyncio.to_thread(self._store.range, prefix, page_size=PAGE)).kvs:
                value = decode(kind, kv.value)
                assert isinstance(value, Envelope | Tombstone)
                outcomes[kv.key[-36:]] = value.outcome
                if isinstance(value, Envelope) and GENERATION in value.metrics:
                    metrics[kv.key[-36:]] = value.metrics
                if isinstance(value, Envelope) and value.outcome is not TaskOutcome.COMPLETED:
                    worst = max(worst or 0, value.exit_code or 0) or None
        numbers: Counter[str] = Counter()
        for index in range(count):
            task = instance_id(array, index)
            outcome = outcomes.get(task)
            if outcome is None and (archived := await asyncio.to_thread(self._archived, task)) is not None:
                outcome, metrics[task] = archived.outcome, archived.metrics
            numbers["unknown" if outcome is None else outcome.value] += 1
        tally = Tally.of(numbers, worst, metrics.values())
        return replace(tally, exit_code=0) if tally.completed else tally

    async def wait(self, task: str, timeout: float, other_than: int | None = None) -> dict[str, Any]:
        """Return a task when it is done, or after `timeout` seconds as it is then.

        `other_than`: or when it has an attempt with another revision than this.
        """

        def has_news() -> bool:
            live = self._pool.live(task)
            if live is None:
                return not self._pool.is_unborn(task)
            return other_than is not None and bool(live.attempt.workers) and live.revision != other_than

        await self._pool.wait_for(task, has_news, timeout)
        return await self.task(task)

    async def plan(self, plan: str, after: int, left: int, timeout: float, *, unfinished: bool) -> dict[str, Any]:
        """Return which tasks of a plan have ended since a revision of the record, as soon as there is one.

        What is told are ends that this coordinator has seen and still holds. `num_live` is always true: by it a client
        knows whether it has missed any, and with `unfinished` the answer names those that are not done.

        Args:
            after: `revision` of the answer before; 0: from the beginning.
            left: how many tasks the client waits for; if fewer are not done, it is answered at once.
            timeout: seconds after which it is answered anyway.
        """

        def has_news() -> bool:
            return self._pool.num_live(plan) < max(left, 1) or any(self._pool.recent_of_plan(plan, after))

        await self._pool.wait_for(of_plan(plan), has_news, timeout)
        told = {
            "plan_id": plan,
            "revision": self._pool.mirror.revision,
            "num_live": self._pool.num_live(plan),
            "ended": [models.done_task(task, ended) for task, ended in self._pool.recent_of_plan(plan, after)][::-1],
        }
        return told | ({"unfinished": self._of_plan(plan)} if unfinished else {})

    def _of_plan(self, plan: str) -> tuple[str, ...]:
        return tuple(live.task for live in self._pool.live_tasks() if live.specification.plan == plan)

    def show(self, live: LiveTask) -> dict[str, Any]:
        """Return a task that is not done as the API shows it."""
        reason = "" if live.attempt.workers else self._explain(live.task)
        told = models.live_task(live, status=self._pool.status(live), reason=reason or "")
        if live.specification.training and live.specification.array:
            told["metadata"]["training"] = models.world_of(self._pool, live)
        return told

    async def outcome(self, task: str) -> TaskOutcome | None:
        """How a task ended that is done; `None` if it is not, or if nobody knows it. Raises what etcd raises."""
        found = self._pool.recent(task) or await self._read_done(task) or await asyncio.to_thread(self._archived, task)
        return None if found is None else found.outcome

    async def envelope(self, task: str) -> Envelope | None:
        """The result of a task that is done, from wherever it is kept; `None` if there is none. Raises what etcd raises."""
        found = self._pool.recent(task) or await self._read_done(task)
        return found if isinstance(found, Envelope) else await asyncio.to_thread(self._archived, task)

    async def look_up(self, task: str) -> tuple[bool, TaskOutcome | None]:
        """Ask etcd whether a task is there and not done, and how it ended if it is done. Raises what etcd raises."""
        there = await asyncio.to_thread(self._store.get, self._pool.keys.key(Kind.TASK, task))
        return there is not None or self._pool.is_unborn(task), await self.outcome(task)

    async def _catch_up(self, task: str, array: str = "") -> None:
        """Wait until this coordinator has heard of a task that etcd has: another may have accepted it a moment ago.

        `array`: the one whose instance it is, if it may not have come to life. Raises `UnknownTask` where etcd has
        neither, and `StoreUnavailable` where etcd's news are late.
        """
        for name in (task, array):
            if not name:
                continue
            if self._pool.has_shown(name):
                if name == task or self._pool.is_unborn(task):
                    return  # it has come since the caller looked
                continue
            if await asyncio.to_thread(self._store.get, self._pool.keys.key(Kind.TASK, name)) is not None:
                if not await self._pool.wait_for(name, lambda: self._pool.has_shown(name), SHOWN):  # noqa: B023
                    raise StoreUnavailable(f"this coordinator has not heard of the task {name} yet: ask again")
                return
        if await self.outcome(task) is None:  # else it has just ended
            raise UnknownTask(f"this farm knows no task {task!r}")

    async def _read_done(self, task: str) -> Envelope | Tombstone | None:
        for kind in (Kind.DONE, Kind.TOMBSTONE):
            key = self._pool.keys.key(kind, task)
            kv = await asyncio.to_thread(self._store.get, key)
            if kv is not None:
                value = decode(kind, kv.value)
                assert isinstance(value, Envelope | Tombstone)
                return value
        return None

    async def failed_attempts(self, task: str) -> list[tuple[int, FailedAttempt]]:
        """Return the attempts, by their numbers, after which a task was tried again, as far as etcd keeps them.

        Raises what etcd raises.
        """
        prefix = self._pool.keys.key(Kind.FAILED, task, 0).removesuffix("0")
        found = await asyncio.to_thread(self._store.range, prefix)
        told: dict[int, FailedAttempt] = {}
        for kv in found.kvs:
            value = decode(Kind.FAILED, kv.value)
            assert isinstance(value, FailedAttempt)
            told[int(kv.key.removeprefix(prefix))] = value
        return sorted(told.items())

    # --- cancelling --------------------------------------------------------------------------------------------------

    async def cancel(self, task: str, reason: str) -> dict[str, Any]:
        """End a task that is not done. Raises as `_catch_up`, and what etcd raises."""
        live = self._pool.live(task)
        if live is None and await self.outcome(task) is None:
            await self._catch_up(task)
            live = self._pool.live(task)
        if live is not None:
            specification = live.specification
            envelope = ended_without_attempt(
                specification,
                TaskOutcome.CANCELLED,
                reason,
                number=live.attempt.number,
                revision=live.revision,
                workers=live.attempt.workers,
            )
            cancelled = await asyncio.wrap_future(
                self._record.cancel(
                    task, envelope, live.attempt, lambda attempt: ending_of(specification, attempt), timeout=WRITE
                )
            )
            if cancelled.cancellation in (Cancellation.CANCELLED, Cancellation.FINISHED):
                await self._pool.wait_for(task, lambda: self._pool.live(task) is None, SHOWN)
            return {"task_id": task, "cancellation": cancelled.cancellation.value}
        return {"task_id": task, "cancellation": Cancellation.FINISHED.value}

    async def cancel_plan(self, plan: str, reason: str) -> dict[str, Any]:
        """End tasks of a plan that are not done, so many that the answer comes soon; says how many, and how many are left.

        Those that came last go first: what comes after another is cancelled, too, and not skipped.
        """
        last = self._of_plan(plan)[: -CANCELLED_AT_ONCE - 1 : -1]
        verdicts = await asyncio.gather(*(self.cancel(task, reason) for task in last))
        ended = [one for one in verdicts if one["cancellation"] == Cancellation.CANCELLED.value]
        return {"plan_id": plan, "num_cancelled": len(ended), "num_live": self._pool.num_live(plan)}

    # --- output ------------------------------------------------------------------------------------------------------

    async def add_output(self, task: str, revision: int, offset: int, chunk: bytes, rank: int = 0) -> int:
        """Store a chunk of an attempt's output; returns the length that is stored. Raises `OutOfOrder`, `OSError`."""
        size = await asyncio.to_thread(self.files.append_log, task, revision, offset, chunk, rank)
        if self._pool.live(task) is not None:
            self._log_sizes.setdefault(task, {})[revision, rank] = size
            self._pool.wake(task)
        return size

    def forget_output(self, task: str) -> None:
        """A task is done: its output's length is what is on the disk."""
        self._log_sizes.pop(task, None)

    async def output(
        self, task: str, revision: int, offset: int, *, follow: bool, rank: int = 0
    ) -> AsyncIterator[bytes]:
        """Yield an attempt's output from `offset` on, of a gang that of one member; with `follow` until the attempt ends."""
        while True:
            over = not follow or not self._runs(task, revision)
            data = await asyncio.to_thread(self.files.read_log, task, revision, offset, CHUNK, rank)
            if data:
                offset += len(data)
                yield data
            elif over:
                return
            else:
                await self._pool.wait_for(task, lambda: self._has_news(task, (revision, rank), offset), POLL)  # noqa: B023

    async def latest_attempt(self, task: str, *, timeout: float) -> int:
        """Return the revision of a task's latest attempt, waiting up to `timeout` seconds for its first; 0 without one."""
        await self._pool.wait_for(task, lambda: (live := self._pool.live(task)) is None or live.revision > 0, timeout)
        live = self._pool.live(task)
        if live is not None and live.attempt.workers:
            return live.revision
        written = await asyncio.to_thread(self.files.attempts_with_log, task)
        return written[-1] if written else 0

    def _runs(self, task: str, revision: int) -> bool:
        return self._pool.mirror.seen(Kind.ATTEMPT, task) == revision

    def _has_news(self, task: str, output: tuple[int, int], offset: int) -> bool:
        return not self._runs(task, output[0]) or self._log_sizes.get(task, {}).get(output, 0) > offset
