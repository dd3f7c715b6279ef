"""`Leader`: what a leading coordinator decides, from what its mirror shows. Pure.

Data flow: the record's changes -> `changed` -> dependencies, scheduler, lost workers -> `decide` -> writes, each with the
leadership's fence or guarded by the attempt as seen. Nothing is changed here by a write's answer, unless it says that
the write was not made (`not_made`).

Rules that this file guards:
- A new leader is built from a mirror that shows its own leader key, thus all that earlier leaders wrote.
- A worker whose connection is gone has `grace` seconds to come back, to any coordinator; then it is forgotten. Once the
  record shows that, its attempts are taken back, each guarded by its revision: a result that comes first counts. An
  assignment that was under way when its worker was forgotten is taken back when it comes by.
- A task that `rules.attempts.SUSPECT` workers were lost with fails, with their names.
- What is skipped or expired is ended by a write that is guarded by the task as seen; it is decided once, and again only
  by another leader.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from dtf_lightning.etcd.store import Compare
from dtf_lightning.farm.record.array_writes import Birth
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.mirror import Change, Mirror
from dtf_lightning.farm.record.task_id import array_and_index
from dtf_lightning.farm.record.trainings.writes import AskToYield
from dtf_lightning.farm.record.values import (
    NO_ATTEMPT,
    Attempt,
    Ending,
    Envelope,
    ProjectRecord,
    TaskOutcome,
    TaskSpecification,
    WorkerRecord,
    WorkerState,
)
from dtf_lightning.farm.record.writes import Assign, Cancel, ForgetWorker, RecordResult, TakeBack, Write
from dtf_lightning.farm.rules.arrays import Tally
from dtf_lightning.farm.rules.attempts import Follow, OutcomeKind, what_follows, why_suspect
from dtf_lightning.farm.rules.dependencies import Dependencies, Skip
from dtf_lightning.farm.rules.expectations import Expectations
from dtf_lightning.farm.rules.scheduling.door import Placement, ReadyTask, Scheduler, WorkerOffer
from dtf_lightning.farm.server.envelopes import ended_without_attempt, envelope_of
from dtf_lightning.farm.server.scheduling.arrays import Arrays
from dtf_lightning.farm.server.scheduling.endings import as_placed, ending_of, lost_ones, name_of, on_worker
from dtf_lightning.farm.server.scheduling.gangs import end_of_gang, has_ended_on
from dtf_lightning.farm.server.scheduling.projects import projects, ready_task, totals
from dtf_lightning.farm.server.scheduling.reuse import Answers, Reuses
from dtf_lightning.farm.server.scheduling.trainings import Trainings

NEVER = float("inf")


@dataclass(frozen=True)
class Now:
    """One moment on both clocks, in seconds."""

    monotonic: float
    wall: float


class Leader:
    """Not thread-safe.

    Args:
        mirror: shows this leadership's key.
        keys: of the farm.
        epoch: the leader key's create revision.
        scheduler: a new one.
        grace: seconds for which a worker may be without a connection.
        expectations: how long tasks take, as far as it is known.
        now: the moment at which it begins to lead.
    """

    def __init__(
        self,
        mirror: Mirror,
        keys: FarmKeys,
        epoch: int,
        scheduler: Scheduler,
        *,
        grace: float,
        now: Now,
        expectations: Expectations | None = None,
    ) -> None:
        self.expectations = expectations or Expectations()
        """Of tasks that get ready from now on."""
        self.epoch = epoch
        self._mirror = mirror
        self._fence = Compare(keys.leader, "create", "=", epoch)
        self._scheduler = scheduler
        self._grace = grace
        self._dependencies = Dependencies()
        self._away: dict[str, float] = {}
        """Worker without a connection -> when it is given up, on the monotonic clock."""
        self._expiring: list[tuple[float, str]] = []
        """A heap of (seconds since the epoch, task)."""
        self._decided: list[Write[Any]] = []
        """Writes other than assignments that are decided and not handed out yet."""
        self._orphans: dict[str, None] = {}
        """Tasks whose attempt names a worker that the record does not know: to be taken back."""
        self._present: set[str] = set()
        self._arrays = Arrays(mirror, self._fence)
        self._reuses = Reuses(self._fence)
        self._trainings = Trainings(
            mirror, self._fence, scheduler, lambda part: self._ready_task(part, self._attempt(part))
        )
        self._build(now)

    # --- what the record shows ---------------------------------------------------------------------------------------

    def changed(self, change: Change, now: Now) -> None:
        """Take in one change of the mirror, which shows it already."""
        name = change.names[0] if change.names else ""
        self._trainings.now = now.wall
        if change.kind is Kind.TASK:
            self._task_changed(name)
        elif change.kind is Kind.ATTEMPT and change.after is not None:
            self._attempt_changed(name)
        elif change.kind is Kind.MEMBER and change.after is not None:
            self._member_ended(name)
        elif change.kind is Kind.DONE and change.after is not None:
            envelope = change.after.value
            assert isinstance(envelope, Envelope)
            self._ended(name, envelope.outcome)
        elif change.kind is Kind.WORKER:
            self._worker_changed(name, now)
        elif change.kind is Kind.ENDING:
            self._ending_changed(*change.names)
        elif change.kind in (Kind.PROJECT, Kind.LICENCE):
            self._shares_changed(change)
        elif change.kind is Kind.SECRET and (change.before is None) != (change.after is None):
            project, secret = change.names
            self._ask_anew(lambda asked: asked.project == project and secret in asked.secrets)
        elif change.kind is Kind.COORDINATOR:
            for (worker,), held in list(self._mirror.all(Kind.WORKER).items()):
                assert isinstance(held.value, WorkerRecord)
                if held.value.coordinator == name:
                    self._worker_changed(worker, now)

    def take_lookups(self) -> list[str]:
        """Return tasks of which the record must tell how they ended; the answers come by `looked_up`."""
        return self._dependencies.take_lookups()

    def looked_up(self, task: str, outcome: TaskOutcome | None) -> None:
        """Take in how a task ended that was looked up. `None`: nobody knows it."""
        if task not in self._present:
            self._ended(task, outcome)

    def take_tallies(self) -> list[tuple[str, int]]:
        """Return arrays whose instances have all ended; the answers come by `tallied`."""
        tallies, self._arrays.over = self._arrays.over, []
        return tallies

    def tallied(self, array: str, revision: int, tally: Tally, now: Now) -> None:
        """Take in how the instances of an array ended, whose frontier had this revision."""
        specification = self._specification(array)
        if specification is None:
            return
        completed = tally.completed
        if specification.training:
            completed = tally.outcomes.get(TaskOutcome.COMPLETED.value, 0) > 0
            self._trainings.is_certain(array, finished=completed)
            if not self._arrays.is_over(array):
                return
        if completed:
            tally = replace(tally, exit_code=0)
        outcome = TaskOutcome.COMPLETED if completed else TaskOutcome.FAILED
        envelope = envelope_of(specification, outcome, tally.reason, attempt=NO_ATTEMPT, revision=revision)
        ended = replace(
            envelope,
            ended=now.wall,
            exit_code=tally.exit_code,
            kind=outcome.value,
            counts=dict(tally.outcomes),
            metrics={**(tally.metrics if specification.training else {}), **self._trainings.lent_in_all(array)},
        )
        self._decided.append(RecordResult(task=array, envelope=ended))

    def take_reuses(self) -> dict[str, TaskSpecification]:
        """Return tasks that end by a result which is known for the same inputs, if there is one; answered by `reuses_told`."""
        found = {task: self._specification(task) for task in self._reuses.take()}
        return {task: specification for task, specification in found.items() if specification is not None}

    def reuses_told(self, asked: Iterable[str], answers: Answers, now: Now) -> None:
        """Take in which results are known for tasks; those without one run."""
        for task in asked:
            specification = self._specification(task)
            if specification is None or task not in self._present:
                continue
            write = self._reuses.told(task, specification, answers.get(task), now.wall)
            if write is not None:
                self._decided.append(write)
            else:
                self._make_ready([task])

    # --- what is decided ---------------------------------------------------------------------------------------------

    def decide(self, at_most: int, now: Now) -> list[Write[Any]]:
        """Return what is to be written now; placements up to `at_most`."""
        for part in self._trainings.ended():
            self._end_unstarted(part, TaskOutcome.SKIPPED, "its training has finished")
        writes, self._decided = self._decided, []
        writes += self._trainings.requests(now.wall)
        writes += self._lose_workers(now)
        writes += self._take_back_orphans(now)
        writes += self._expire(now)
        writes += self._arrays.next()
        assigned = self._assign(at_most, now)
        asked, offered = self._trainings.look(now.monotonic, now.wall)
        assigned += self._assignments(self._trainings.take_placed())
        if self._trainings.has_offers:
            assigned += self._assign(at_most - len(assigned), now)
        self._trainings.withdraw(offered)
        return [*writes, *assigned, *asked]

    def _assign(self, at_most: int, now: Now) -> list[Write[Any]]:
        found = self._scheduler.decide(at_most, now.wall)
        return self._assignments([one for placement in found for one in self._trainings.spread(placement)])

    def _assignments(self, placed: list[Placement]) -> list[Write[Any]]:
        writes: list[Write[Any]] = []
        for placement in placed:
            attempt = self._attempt(placement.task)
            given = replace(
                attempt,
                number=attempt.number + 1,
                workers=placement.workers,
                alternative=placement.alternative,
                epoch=self.epoch,
            )
            seen = self._mirror.seen(Kind.ATTEMPT, placement.task)
            writes.append(Assign(task=placement.task, attempt=given, seen=seen, fence=self._fence))
        return writes

    def next_deadline(self) -> tuple[float, float]:
        """Return when there is something to decide though nothing changes: on the monotonic clock, and on the wall's."""
        monotonic, wall = self._trainings.next_deadline()
        expires = self._expiring[0][0] if self._expiring else NEVER
        return min(monotonic, *self._away.values(), NEVER), min(wall, expires)

    def not_made(self, write: Write[Any]) -> None:
        """A write was not made: an assignment's task is ready again, any other write is handed out again."""
        if isinstance(write, Birth):
            self._arrays.again(write.array)
        elif isinstance(write, AskToYield):
            self._trainings.not_made(write)
        elif not isinstance(write, Assign):
            self._decided.append(write)
        elif write.task in self._present:
            self._scheduler.placement_refused(write.task)
            if self._is_part(write.task):
                self._part_waits(write.task)

    def explain(self, task: str, wall: float) -> str:
        """Say in one sentence why a task that is not done does not run."""
        waits = self._dependencies.waits_for(task)
        if waits:
            more = f" and {len(waits) - 1} more" if len(waits) > 1 else ""
            return f"waits for the task {waits[0]}{more} to end"
        specification = self._specification(task)
        if specification is not None and specification.array:
            return self._arrays.explain(task)
        if self._reuses.waits(task):
            return "it is looked up whether a result for the same inputs is known"
        if self._is_part(task) and self._trainings.holds_back(task):
            return self._trainings.explain(task, wall)
        return self._scheduler.explain(task, wall)

    # --- the parts ---------------------------------------------------------------------------------------------------

    def _shares_changed(self, change: Change) -> None:
        """A project or a licence was set. Tasks that wait are told anew where their project's own limits are others."""
        self._tell_shares()
        before, after = (None if held is None else held.value for held in (change.before, change.after))
        limits = [value.limits if isinstance(value, ProjectRecord) else {} for value in (before, after)]
        if change.kind is Kind.PROJECT and limits[0] != limits[1]:
            self._ask_anew(lambda asked: asked.project == change.names[0] and bool(asked.limits))
        counted = [isinstance(value, ProjectRecord) and value.max_running > 0 for value in (before, after)]
        if change.kind is Kind.PROJECT and counted[0] != counted[1]:
            self._ask_anew(lambda asked: asked.project == change.names[0])
            self._count_anew(change.names[0])

    def _count_anew(self, project: str) -> None:
        """Tell the scheduler anew of a project's tasks that run: what they hold is another thing now."""
        for (task,), held in self._mirror.all(Kind.TASK).items():
            assert isinstance(held.value, TaskSpecification)
            attempt = self._attempt(task)
            if held.value.project == project and attempt.workers and self._scheduler.is_placed(task):
                self._scheduler.task_gone(task)
                self._scheduler.task_placed(self._ready_task(task, attempt), attempt.workers, attempt.alternative)

    def _ask_anew(self, concerned: Callable[[TaskSpecification], bool]) -> None:
        """Tell the scheduler anew of those tasks that wait for room: what they need is another thing now."""
        waiting = [
            task
            for (task,), held in self._mirror.all(Kind.TASK).items()
            if isinstance(held.value, TaskSpecification)
            and concerned(held.value)
            and not self._dependencies.waits_for(task)
            and not self._scheduler.is_placed(task)
        ]
        self._make_ready(waiting)

    def _tell_shares(self) -> None:
        for name, record in projects(self._mirror).items():
            self._scheduler.project(name, record.weight)
        self._scheduler.licences(totals(self._mirror))

    def _build(self, now: Now) -> None:
        self._tell_shares()
        for (worker,), _ in list(self._mirror.all(Kind.WORKER).items()):
            self._worker_changed(worker, now)
        ready: list[str] = []
        for (task,), held in sorted(self._mirror.all(Kind.TASK).items(), key=lambda item: item[1].create_revision):
            ready += self._appeared(task, held.value, all_known=False)
        self._dependencies.settle()
        self._make_ready(ready)
        for ending in list(self._mirror.all(Kind.ENDING)):
            self._ending_changed(*ending)
        for array, revision in self._arrays.trainings_with_ended_parts():
            self._trainings.is_uncertain(array)
            self._arrays.over.append((array, revision))

    def _ending_changed(self, task: str, revision: str) -> None:
        """What an attempt that does not count any more holds is taken until its workers say otherwise, or are lost."""
        held = self._mirror.get(Kind.ENDING, task, revision)
        if held is None:
            self._scheduler.task_gone(name_of(task, revision))
            return
        assert isinstance(held.value, Ending)
        self._scheduler.task_placed(as_placed(self._mirror, task, revision, held.value), held.value.workers, 0)
        if (release := lost_ones(self._mirror, task, revision)) is not None:
            self._decided.append(release)

    def _task_changed(self, task: str) -> None:
        held = self._mirror.get(Kind.TASK, task)
        if held is not None:
            if task not in self._present:
                self._make_ready(self._appeared(task, held.value, all_known=True))
            return
        if task in self._present:
            self._present.discard(task)
            self._scheduler.task_gone(task)
            self._trainings.gone(task)
            self._dependencies.gone(task)
            self._reuses.gone(task)
            if (instance := array_and_index(task)) is not None:
                self._arrays.instance_gone(instance[0], task)
            for orphan in self._arrays.gone(task):
                self._cancel_orphan(orphan)

    def _appeared(self, task: str, value: object, *, all_known: bool) -> list[str]:
        assert isinstance(value, TaskSpecification)
        self._present.add(task)
        if value.expires is not None:
            heapq.heappush(self._expiring, (value.submitted + value.expires, task))
        ready, skipped = self._dependencies.present(task, value.after, value.after_any, all_known=all_known)
        self._skip(skipped)
        return ready

    def _attempt_changed(self, task: str) -> None:
        if task in self._present and not self._dependencies.waits_for(task):
            self._make_ready([task])

    def _member_ended(self, task: str) -> None:
        """Where it was the last of its gang, the attempt's end is decided."""
        held, specification = self._mirror.get(Kind.ATTEMPT, task), self._specification(task)
        if held is None or specification is None or len((attempt := self._attempt(task)).workers) < 2:
            return
        if (end := end_of_gang(self._mirror, task, specification, attempt, held.mod_revision)) is not None:
            self._decided.append(end)

    def _make_ready(self, tasks: Iterable[str]) -> None:
        for task in tasks:
            if task not in self._present or self._mirror.get(Kind.TASK, task) is None:
                continue  # the mirror shows the end of a batch at its first change: the task's own end is still to be told
            attempt = self._attempt(task)
            specification = self._specification(task)
            assert specification is not None
            if specification.array:
                self._arrays.ready(task)
                continue
            if specification.array_id:
                self._arrays.instance(specification.array_id, task, waits=not attempt.workers)
                if self._mirror.get(Kind.TASK, specification.array_id) is None:
                    self._cancel_orphan(task)
                    continue
            if self._reuses.holds_back(task, specification, attempt):
                continue
            ready = self._ready_task(task, attempt)
            if attempt.workers:
                if any(self._mirror.get(Kind.WORKER, worker) is None for worker in attempt.workers):
                    self._orphans[task] = None
                if len(attempt.workers) > 1:
                    self._member_ended(task)
                self._scheduler.task_placed(ready, attempt.workers, attempt.alternative)
                if specification.training:
                    self._trainings.runs(task)
            elif specification.training:
                self._part_waits(task)
            else:
                self._scheduler.task_ready(ready)

    def _is_part(self, task: str) -> bool:
        specification = self._specification(task)
        return specification is not None and bool(specification.training) and not specification.array

    def _part_waits(self, part: str) -> None:
        """It is told to the scheduler when its training may grow."""
        self._scheduler.task_gone(part)
        self._trainings.waits(part)

    def _cancel_orphan(self, instance: str) -> None:
        """The array of an instance was cancelled."""
        self._scheduler.task_gone(instance)
        self._end_unstarted(instance, TaskOutcome.CANCELLED, "its array was cancelled")

    def _ended(self, task: str, outcome: TaskOutcome | None) -> None:
        if outcome is TaskOutcome.COMPLETED:
            self._trainings.completed(task)
        how = "is unknown" if outcome is None else f"ended as {outcome.value}"
        ready, skipped = self._dependencies.ended(task, outcome is TaskOutcome.COMPLETED, how)
        self._make_ready(ready)
        self._skip(skipped)

    def _skip(self, skipped: Iterable[Skip]) -> None:
        for skip in skipped:
            self._end_unstarted(skip.task, TaskOutcome.SKIPPED, skip.reason)

    def _end_unstarted(self, task: str, outcome: TaskOutcome, reason: str) -> None:
        held = self._mirror.get(Kind.TASK, task)
        if held is None:
            return
        assert isinstance(held.value, TaskSpecification)
        seen = self._mirror.seen(Kind.ATTEMPT, task)
        attempt = self._attempt(task)
        envelope = ended_without_attempt(
            held.value, outcome, reason, number=attempt.number, revision=seen, workers=attempt.workers
        )
        self._decided.append(Cancel(task=task, envelope=envelope, ending=ending_of(held.value, attempt)))

    def _expire(self, now: Now) -> list[Write[Any]]:
        while self._expiring and self._expiring[0][0] <= now.wall:
            _, task = heapq.heappop(self._expiring)
            attempt = self._attempt(task)
            if task in self._present and not attempt.workers and not attempt.born:
                self._end_unstarted(task, TaskOutcome.EXPIRED, "it was not started before it expired")
        writes, self._decided = self._decided, []
        return writes

    def _worker_changed(self, worker: str, now: Now) -> None:
        held = self._mirror.get(Kind.WORKER, worker)
        if held is None:
            self._away.pop(worker, None)
            self._scheduler.worker_gone(worker)
            for (task,), tried in self._mirror.all(Kind.ATTEMPT).items():
                if isinstance(tried.value, Attempt) and worker in tried.value.workers:
                    self._orphans[task] = None
            for task, revision in on_worker(self._mirror, worker):
                self._ending_changed(task, str(revision))
            return
        record = held.value
        assert isinstance(record, WorkerRecord)
        connected = record.coordinator != "" and self._mirror.get(Kind.COORDINATOR, record.coordinator) is not None
        if connected:
            self._away.pop(worker, None)
        else:
            self._away.setdefault(worker, now.monotonic + self._grace)
        open_for_work = connected and not record.cordoned and record.state in (WorkerState.ONLINE, WorkerState.BUSY)
        self._scheduler.worker_offers(
            WorkerOffer(worker=worker, devices=record.devices, labels=record.labels, accepting=open_for_work)
        )

    def _lose_workers(self, now: Now) -> list[Write[Any]]:
        lost = [worker for worker, deadline in self._away.items() if deadline <= now.monotonic]
        writes: list[Write[Any]] = []
        for worker in lost:
            del self._away[worker]
            seen = self._mirror.seen(Kind.WORKER, worker)
            writes.append(ForgetWorker(worker=worker, seen=seen, fence=self._fence))
        return writes

    def _take_back_orphans(self, now: Now) -> list[Write[Any]]:
        """Take attempts back from workers that are forgotten, those too that were just being assigned when they went."""
        writes: list[Write[Any]] = []
        for task in self._orphans:
            held = self._mirror.get(Kind.ATTEMPT, task)
            if held is None:
                continue
            assert isinstance(held.value, Attempt)
            gone = [
                worker
                for worker in held.value.workers
                if self._mirror.get(Kind.WORKER, worker) is None
                and not has_ended_on(self._mirror, task, held.value, held.mod_revision, worker)
            ]
            if gone:
                writes.append(self._take_back(task, held.value, held.mod_revision, gone[0], now))
        self._orphans.clear()
        return writes

    def _take_back(self, task: str, attempt: Attempt, seen: int, worker: str, now: Now) -> Write[Any]:
        follows = what_follows(OutcomeKind.LOST, failures=0, retries=0, lost=attempt.lost + 1)
        specification = self._specification(task)
        others = tuple(
            one
            for one in attempt.workers
            if self._mirror.get(Kind.WORKER, one) is not None
            and not has_ended_on(self._mirror, task, attempt, seen, one)
        )
        ending = ending_of(specification, replace(attempt, workers=others)) if specification is not None else None
        if follows is Follow.FAILED and specification is not None:
            reason = why_suspect(attempt.lost + 1, worker)
            envelope = envelope_of(specification, TaskOutcome.FAILED, reason, attempt=attempt, revision=seen)
            return RecordResult(task=task, envelope=replace(envelope, ended=now.wall), ending=ending)
        return TakeBack(
            task=task,
            attempt=attempt.given_back(worker, lost=True),
            seen=seen,
            fence=self._fence,
            num_workers=len(attempt.workers),
            ending=ending,
        )

    def _attempt(self, task: str) -> Attempt:
        held = self._mirror.get(Kind.ATTEMPT, task)
        if held is None:
            return NO_ATTEMPT
        assert isinstance(held.value, Attempt)
        return held.value

    def _specification(self, task: str) -> TaskSpecification | None:
        held = self._mirror.get(Kind.TASK, task)
        if held is None:
            return None
        assert isinstance(held.value, TaskSpecification)
        return held.value

    def _ready_task(self, task: str, attempt: Attempt) -> ReadyTask:
        return ready_task(self._mirror, task, attempt, self.expectations)
