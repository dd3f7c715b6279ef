"""Each guarded write of a farm, one after the other, on the twin and on etcd: what it does and what its refusal means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from dtf_lightning.errors import ProtocolError, StoreUnavailable
from dtf_lightning.etcd.election import Election, Leadership
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.etcd.store import KeyValue, Store
from dtf_lightning.farm.record.codec import decode
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.lane import Lane
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.reuse.writes import Reuse
from dtf_lightning.farm.record.values import (
    Attempt,
    Envelope,
    FailedAttempt,
    TaskOutcome,
    TaskSpecification,
    Tombstone,
    WorkerRecord,
)
from dtf_lightning.farm.record.writes import (
    Archive,
    Assign,
    Cancel,
    Cancellation,
    Cancelled,
    Decision,
    ForgetKey,
    ForgetTombstone,
    ForgetWorker,
    Recording,
    RecordResult,
    RecordRetry,
    Register,
    ReportHealth,
    Submission,
    Submit,
    Submitted,
    TakeBack,
)
from dtf_lightning.farm.rules.health import HealthStatus, WorkerHealth
from support.farm.stores import FaultyStore

TASK = TaskSpecification(command=("pytest",))
WORKER = WorkerRecord(coordinator="c", connection="n1", session="s")


@dataclass
class Farm:
    """A farm whose writes are made at once, and whose next one can lose its first answer."""

    store: FaultyStore
    keys: FarmKeys

    def do(self, write, *, lost: bool = False):
        """The verdict. `lost`: the write is made twice, since nobody heard of the first time."""
        if lost:
            self.store.faults.append("applied")
        lane = Lane(self.store, "test")
        future = lane.submit(write.guarded(self.keys), write.verdict)
        while lane.num_waiting:
            lane.step()
        return future.result(0)

    def at(self, kind: Kind, *names) -> KeyValue | None:
        return self.store.get(self.keys.key(kind, *names))

    def value(self, kind: Kind, *names):
        kv = self.at(kind, *names)
        return None if kv is None else decode(kind, kv.value)

    def revision(self, kind: Kind, *names) -> int:
        kv = self.at(kind, *names)
        return 0 if kv is None else kv.mod_revision

    def contents(self) -> list[str]:
        return [kv.key.removeprefix(self.keys.prefix) for kv in self.store.range(self.keys.prefix).kvs]

    def lead(self) -> Leadership:
        """A new leader, which the farm has from now on."""
        lease = self.store.lease(60)
        self.store.delete(self.keys.leader)
        leadership = Election(self.store, self.keys.leader).try_acquire(b'{"v":1,"coordinator":"c"}', lease.id)
        lease.abandon()
        return leadership

    def assigned(self, task: str = "t", worker: str = "w") -> tuple[Leadership, int]:
        """A task with a worker: who leads, and the attempt's identity."""
        assert self.do(Submit(task=task, specification=TASK)).submission is Submission.NEW
        leader = self.lead()
        attempt = Attempt(number=1, workers=(worker,), epoch=leader.epoch)
        assert self.do(Assign(task=task, attempt=attempt, seen=0, fence=leader.fence)) is Decision.MADE
        return leader, self.revision(Kind.ATTEMPT, task)


@pytest.fixture
def lab(store: Store, farm: str) -> Farm:
    return Farm(FaultyStore(store), FarmKeys(farm))


@pytest.fixture(params=[False, True], ids=["answered", "answer lost"])
def lost(request: pytest.FixtureRequest) -> bool:
    """The write under test may lose its first answer; what is said of it must be the same."""
    return request.param


def result(revision: int, outcome: TaskOutcome = TaskOutcome.COMPLETED, **more) -> Envelope:
    return Envelope(outcome=outcome, attempt=1, revision=revision, **more)


class TestSubmit:
    def test_a_new_task(self, lab: Farm, lost: bool):
        assert lab.do(Submit(task="t", specification=TASK), lost=lost) == Submitted(submission=Submission.NEW, task="t")
        assert lab.value(Kind.TASK, "t") == TASK
        assert lab.at(Kind.TASK, "t").version == 1

    def test_twice_is_once(self, lab: Farm, lost: bool):
        """Also where the coordinator of the second time stamped it with another time."""
        lab.do(Submit(task="t", specification=replace(TASK, submitted=1.0)))
        again = Submit(task="t", specification=replace(TASK, submitted=2.0))
        assert lab.do(again, lost=lost).submission is Submission.KNOWN
        assert lab.value(Kind.TASK, "t").submitted == 1.0

    def test_another_task_under_its_id(self, lab: Farm):
        lab.do(Submit(task="t", specification=TASK))
        other = replace(TASK, command=("rm",))
        assert lab.do(Submit(task="t", specification=other)).submission is Submission.CONFLICT
        assert lab.value(Kind.TASK, "t") == TASK

    def test_after_it_is_done_and_after_it_is_archived(self, lab: Farm, lost: bool):
        """It stays known until its tombstone goes."""
        _, attempt = lab.assigned()
        lab.do(RecordResult(task="t", envelope=result(attempt)))
        assert lab.do(Submit(task="t", specification=TASK), lost=lost).submission is Submission.DONE
        tombstone = Tombstone(outcome=TaskOutcome.COMPLETED, archived=1.0)
        lab.do(Archive(task="t", seen=lab.revision(Kind.DONE, "t"), tombstone=tombstone))
        assert lab.do(Submit(task="t", specification=TASK), lost=lost).submission is Submission.DONE
        assert lab.at(Kind.TASK, "t") is None

    def test_the_same_key_is_the_same_task(self, lab: Farm, lost: bool):
        """Whatever its id and whether it is done."""
        keyed = replace(TASK, key="nightly/2026")
        assert lab.do(Submit(task="t", specification=keyed), lost=lost).submission is Submission.NEW
        verdict = lab.do(Submit(task="u", specification=keyed), lost=lost)
        assert verdict == Submitted(submission=Submission.SAME_KEY, task="t")
        assert lab.at(Kind.TASK, "u") is None
        assert lab.do(Submit(task="u", specification=TASK)).submission is Submission.NEW


class TestDecisions:
    def test_an_assignment(self, lab: Farm, lost: bool):
        lab.do(Submit(task="t", specification=TASK))
        leader = lab.lead()
        attempt = Attempt(number=1, workers=("a", "b"), epoch=leader.epoch)
        assert lab.do(Assign(task="t", attempt=attempt, seen=0, fence=leader.fence), lost=lost) is Decision.MADE
        assert lab.value(Kind.ATTEMPT, "t") == attempt

    def test_a_deposed_leader(self, lab: Farm, lost: bool):
        """Its decisions fail, by the fence that each was made under, and so where nobody leads."""
        leader, attempt = lab.assigned()
        lab.do(Register(worker="w", record=WORKER, seen=0))
        new = lab.lead()
        moved = Attempt(number=2, workers=("x",), epoch=leader.epoch)
        writes = [
            Assign(task="t", attempt=moved, seen=attempt, fence=leader.fence),
            TakeBack(task="t", attempt=replace(moved, workers=()), seen=attempt, fence=leader.fence),
            ForgetWorker(worker="w", seen=lab.revision(Kind.WORKER, "w"), fence=leader.fence),
        ]
        assert [lab.do(write, lost=lost) for write in writes] == [Decision.DEPOSED] * 3
        lab.store.delete(lab.keys.leader)
        assert [lab.do(write) for write in writes] == [Decision.DEPOSED] * 3
        assert lab.revision(Kind.ATTEMPT, "t") == attempt
        assert lab.value(Kind.WORKER, "w") == WORKER
        assert new.epoch > leader.epoch

    def test_on_what_has_changed(self, lab: Farm, lost: bool):
        """A leader whose mirror is behind decides nothing."""
        leader, attempt = lab.assigned()
        moved = Attempt(number=2, workers=("x",), epoch=leader.epoch)
        assert lab.do(Assign(task="t", attempt=moved, seen=0, fence=leader.fence), lost=lost) is Decision.CHANGED
        stale = TakeBack(task="t", attempt=moved, seen=attempt - 1, fence=leader.fence)
        assert lab.do(stale, lost=lost) is Decision.CHANGED
        assert lab.revision(Kind.ATTEMPT, "t") == attempt

    def test_on_a_task_that_is_done(self, lab: Farm, lost: bool):
        leader, attempt = lab.assigned()
        lab.do(RecordResult(task="t", envelope=result(attempt)))
        moved = Attempt(number=2, workers=("x",), epoch=leader.epoch)
        for seen in (0, attempt):
            assert lab.do(Assign(task="t", attempt=moved, seen=seen, fence=leader.fence), lost=lost) is Decision.GONE
        assert lab.do(TakeBack(task="t", attempt=moved, seen=attempt, fence=leader.fence)) is Decision.GONE
        assert lab.at(Kind.ATTEMPT, "t") is None

    def test_a_lost_worker(self, lab: Farm, lost: bool):
        """Its record goes, its task waits to be assigned again, and its late result is stale."""
        leader, attempt = lab.assigned()
        lab.do(Register(worker="w", record=WORKER, seen=0))
        seen = lab.revision(Kind.WORKER, "w")
        assert lab.do(ForgetWorker(worker="w", seen=seen, fence=leader.fence), lost=lost) is Decision.MADE
        back = Attempt(number=1, epoch=leader.epoch, excluded=("w",))
        assert lab.do(TakeBack(task="t", attempt=back, seen=attempt, fence=leader.fence), lost=lost) is Decision.MADE
        assert lab.value(Kind.ATTEMPT, "t") == back
        assert lab.do(RecordResult(task="t", envelope=result(attempt)), lost=lost) is Recording.STALE
        again = Attempt(number=2, workers=("x",), epoch=leader.epoch, excluded=("w",))
        seen = lab.revision(Kind.ATTEMPT, "t")
        assert lab.do(Assign(task="t", attempt=again, seen=seen, fence=leader.fence)) is Decision.MADE

    def test_a_workers_health(self, lab: Farm, lost: bool):
        """It is written while the worker's record is there, each time in the place of the last, and goes with the worker."""
        leader, _ = lab.assigned()
        reports = [WorkerHealth(at=at, status=HealthStatus.HEALTHY, metrics={"load": at}) for at in (1.0, 2.0)]
        assert not lab.do(ReportHealth(worker="w", health=reports[0]), lost=lost)
        lab.do(Register(worker="w", record=WORKER, seen=0))
        for report in reports:
            assert lab.do(ReportHealth(worker="w", health=report), lost=lost)
            assert lab.value(Kind.HEALTH, "w") == report
        assert lab.value(Kind.WORKER, "w") == WORKER
        seen = lab.revision(Kind.WORKER, "w")
        assert lab.do(ForgetWorker(worker="w", seen=seen, fence=leader.fence), lost=lost) is Decision.MADE
        assert lab.value(Kind.HEALTH, "w") is None

    def test_a_worker_that_is_back_is_not_forgotten(self, lab: Farm):
        leader, _ = lab.assigned()
        lab.do(Register(worker="w", record=WORKER, seen=0))
        seen = lab.revision(Kind.WORKER, "w")
        assert lab.do(Register(worker="w", record=replace(WORKER, connection="n2"), seen=seen))
        assert lab.do(ForgetWorker(worker="w", seen=seen, fence=leader.fence)) is Decision.CHANGED
        assert lab.do(ForgetWorker(worker="v", seen=seen, fence=leader.fence)) is Decision.GONE


class TestResults:
    def test_a_result(self, lab: Farm, lost: bool):
        """Task and attempt go, the result is written once, and sending it again is answered the same."""
        _, attempt = lab.assigned()
        envelope = result(attempt, TaskOutcome.FAILED, exit_code=1)
        for _ in range(2):
            assert lab.do(RecordResult(task="t", envelope=envelope), lost=lost) is Recording.RECORDED
        assert lab.value(Kind.DONE, "t") == envelope
        assert lab.at(Kind.DONE, "t").version == 1
        assert lab.contents() == ["done/t", "leader"]

    def test_only_of_the_attempt_that_counts(self, lab: Farm, lost: bool):
        _, attempt = lab.assigned()
        for revision in (attempt - 1, attempt + 1):
            assert lab.do(RecordResult(task="t", envelope=result(revision)), lost=lost) is Recording.STALE
        assert lab.do(RecordResult(task="nobody", envelope=result(attempt)), lost=lost) is Recording.STALE
        assert lab.contents() == ["attempts/t", "leader", "tasks/t"]

    def test_a_retry(self, lab: Farm, lost: bool):
        """The failure is kept, the task waits again, and the failed attempt's result no longer counts."""
        _, attempt = lab.assigned()
        failed = FailedAttempt(revision=attempt, workers=("w",), reason="exit code 1", ended=1.0)
        waiting = Attempt(number=1, excluded=("w",))
        retry = RecordRetry(task="t", number=1, failed=failed, attempt=waiting)
        for _ in range(2):
            assert lab.do(retry, lost=lost) is Recording.RECORDED
        assert lab.value(Kind.FAILED, "t", 1) == failed
        assert lab.value(Kind.ATTEMPT, "t") == waiting
        assert lab.do(RecordResult(task="t", envelope=result(attempt))) is Recording.STALE
        late = replace(retry, number=2, failed=replace(failed, revision=attempt - 1))
        assert lab.do(late, lost=lost) is Recording.STALE

    def test_archiving(self, lab: Farm, lost: bool):
        """Result and failures go, the id stays known."""
        leader, attempt = lab.assigned()
        failed = FailedAttempt(revision=attempt, workers=("w",), reason="", ended=1.0)
        lab.do(RecordRetry(task="t", number=1, failed=failed, attempt=Attempt(number=1)))
        seen = lab.revision(Kind.ATTEMPT, "t")
        lab.do(Assign(task="t", attempt=Attempt(number=2, workers=("x",)), seen=seen, fence=leader.fence))
        lab.do(RecordResult(task="t", envelope=result(lab.revision(Kind.ATTEMPT, "t"))))
        done = lab.revision(Kind.DONE, "t")
        tombstone = Tombstone(outcome=TaskOutcome.COMPLETED, archived=1.0)
        assert not lab.do(Archive(task="t", seen=done - 1, tombstone=tombstone, failed=(1,)))
        for _ in range(2):
            assert lab.do(Archive(task="t", seen=done, tombstone=tombstone, failed=(1,)), lost=lost)
        assert lab.contents() == ["leader", "tombstones/t"]

    def test_forgetting_what_was_archived(self, lab: Farm, lost: bool):
        """First its tombstone, then its key; neither as long as it is otherwise than it was seen."""
        keyed = replace(TASK, key="nightly")
        lab.do(Submit(task="t", specification=keyed))
        key = ForgetKey(key="nightly", seen=lab.revision(Kind.KEY, "nightly"), task="t")
        assert not lab.do(key, lost=lost)
        lab.do(Cancel(task="t", envelope=result(0, TaskOutcome.CANCELLED)))
        assert not lab.do(key)
        tombstone = Tombstone(outcome=TaskOutcome.CANCELLED, archived=1.0)
        lab.do(Archive(task="t", seen=lab.revision(Kind.DONE, "t"), tombstone=tombstone))
        assert not lab.do(key)
        seen = lab.revision(Kind.TOMBSTONE, "t")
        assert not lab.do(ForgetTombstone(task="t", seen=seen - 1))
        for _ in range(2):
            assert lab.do(ForgetTombstone(task="t", seen=seen), lost=lost)
        assert not lab.do(replace(key, seen=key.seen - 1))
        for _ in range(2):
            assert lab.do(key, lost=lost)
        assert lab.contents() == []

    def test_an_envelope_that_is_too_large(self, lab: Farm):
        with pytest.raises(ProtocolError, match="artifacts"):
            RecordResult(task="t", envelope=result(5, reason="x" * 9000)).guarded(lab.keys)


class TestReuse:
    KNOWN = Envelope(outcome=TaskOutcome.COMPLETED, attempt=0, revision=0, reused_from="s", exit_code=0)

    def test_a_task_that_was_never_tried(self, lab: Farm, lost: bool):
        leader = lab.lead()
        lab.do(Submit(task="t", specification=TASK))
        assert lab.do(Reuse(task="t", envelope=self.KNOWN, fence=leader.fence), lost=lost) is Decision.MADE
        assert (lab.value(Kind.DONE, "t"), lab.at(Kind.TASK, "t")) == (self.KNOWN, None)
        assert lab.do(Reuse(task="t", envelope=replace(self.KNOWN, exit_code=1), fence=leader.fence)) is Decision.GONE

    def test_what_was_begun_is_brought_to_its_end(self, lab: Farm, lost: bool):
        leader, attempt = lab.assigned()
        assert lab.do(Reuse(task="t", envelope=self.KNOWN, fence=leader.fence), lost=lost) is Decision.CHANGED
        assert lab.do(RecordResult(task="t", envelope=result(attempt))) is Recording.RECORDED

    def test_by_a_deposed_leader(self, lab: Farm, lost: bool):
        old = lab.lead()
        lab.lead()
        lab.do(Submit(task="t", specification=TASK))
        assert lab.do(Reuse(task="t", envelope=self.KNOWN, fence=old.fence), lost=lost) is Decision.DEPOSED
        assert lab.value(Kind.TASK, "t") == TASK


class TestCancel:
    def cancel(self, revision: int = 0) -> Cancel:
        return Cancel(task="t", envelope=result(revision, TaskOutcome.CANCELLED))

    def test_a_task_that_waits(self, lab: Farm, lost: bool):
        lab.do(Submit(task="t", specification=TASK))
        for _ in range(2):
            assert lab.do(self.cancel(), lost=lost) == Cancelled(cancellation=Cancellation.CANCELLED)
        assert lab.contents() == ["done/t"]

    def test_a_task_that_runs(self, lab: Farm, lost: bool):
        """Its result comes too late."""
        _, attempt = lab.assigned()
        assert lab.do(self.cancel(attempt), lost=lost).cancellation is Cancellation.CANCELLED
        assert lab.do(RecordResult(task="t", envelope=result(attempt))) is Recording.STALE
        assert lab.value(Kind.DONE, "t").outcome is TaskOutcome.CANCELLED

    def test_a_task_that_was_just_assigned(self, lab: Farm, lost: bool):
        """What was seen is not what is: the attempt is told."""
        leader, attempt = lab.assigned()
        verdict = lab.do(self.cancel(), lost=lost)
        told = Attempt(number=1, workers=("w",), epoch=leader.epoch)
        assert verdict == Cancelled(cancellation=Cancellation.CHANGED, seen=attempt, attempt=told)

    def test_a_task_that_is_done_or_archived_or_unknown(self, lab: Farm, lost: bool):
        assert lab.do(self.cancel(), lost=lost).cancellation is Cancellation.UNKNOWN
        _, attempt = lab.assigned()
        lab.do(RecordResult(task="t", envelope=result(attempt)))
        assert lab.do(self.cancel(attempt), lost=lost).cancellation is Cancellation.FINISHED
        tombstone = Tombstone(outcome=TaskOutcome.COMPLETED, archived=1.0)
        lab.do(Archive(task="t", seen=lab.revision(Kind.DONE, "t"), tombstone=tombstone))
        assert lab.do(self.cancel(attempt), lost=lost).cancellation is Cancellation.FINISHED

    def test_no_cancellation_completes_a_task(self, lab: Farm):
        with pytest.raises(AssertionError):
            Cancel(task="t", envelope=result(1, TaskOutcome.COMPLETED)).guarded(lab.keys)


class TestRegister:
    def test_by_what_was_seen(self, lab: Farm, lost: bool):
        """A registration that was held up on its way does not undo a later one."""
        assert lab.do(Register(worker="w", record=WORKER, seen=0), lost=lost)
        seen = lab.revision(Kind.WORKER, "w")
        newer = replace(WORKER, coordinator="d", connection="n2")
        assert lab.do(Register(worker="w", record=newer, seen=seen), lost=lost)
        assert not lab.do(Register(worker="w", record=replace(WORKER, connection="n3"), seen=seen), lost=lost)
        assert lab.value(Kind.WORKER, "w") == newer


# --- the record as a whole -------------------------------------------------------------------------------------------


@pytest.fixture
def record(store: Store, farm: str) -> Iterator[FarmRecord]:
    with FarmRecord(store, farm) as opened:
        yield opened


def test_a_task_from_beginning_to_end(record: FarmRecord, lab: Farm):
    """Through the lanes: hundred tasks are submitted, assigned, recorded and archived."""
    tasks = [f"t{number}" for number in range(100)]
    leader = lab.lead()

    def all_are(write: Callable[[str], object], expected) -> None:
        futures = [record.write(write(task), timeout=60) for task in tasks]
        assert [future.result(60) for future in futures] == [
            expected(task) if callable(expected) else expected for task in tasks
        ]

    all_are(
        lambda task: Submit(task=task, specification=TASK),
        lambda task: Submitted(submission=Submission.NEW, task=task),
    )
    attempt = Attempt(number=1, workers=("w",), epoch=leader.epoch)
    all_are(lambda task: Assign(task=task, attempt=attempt, seen=0, fence=leader.fence), Decision.MADE)
    revisions = {task: lab.revision(Kind.ATTEMPT, task) for task in tasks}
    all_are(lambda task: RecordResult(task=task, envelope=result(revisions[task])), Recording.RECORDED)
    tombstone = Tombstone(outcome=TaskOutcome.COMPLETED, archived=1.0)
    done = {task: lab.revision(Kind.DONE, task) for task in tasks}
    all_are(lambda task: Archive(task=task, seen=done[task], tombstone=tombstone), True)
    assert lab.contents() == ["leader", *sorted(f"tombstones/{task}" for task in tasks)]
    assert sum(counts.applied for counts in record.counts().values()) == 400
    assert sum(counts.refused for counts in record.counts().values()) == 0


def test_cancelling_follows_the_attempt(record: FarmRecord, lab: Farm):
    """Known here as unassigned, it has a worker already: the cancellation names that attempt."""
    _, attempt = lab.assigned()
    envelope = Envelope(outcome=TaskOutcome.CANCELLED, attempt=0, revision=0, reason="by ann")
    assert record.cancel("t", envelope).result(60).cancellation is Cancellation.CANCELLED
    assert lab.value(Kind.DONE, "t") == replace(envelope, attempt=1, revision=attempt, workers=("w",))


def test_cancelling_in_an_outage():
    """Whoever asked is told."""
    store = MemoryStore()
    store.reachable = False
    with FarmRecord(store, "lab") as record:
        envelope = Envelope(outcome=TaskOutcome.CANCELLED, attempt=0, revision=0)
        with pytest.raises(StoreUnavailable):
            record.cancel("t", envelope, timeout=0.05).result(60)


def test_a_fence_is_never_made_anew(farm: str):
    """A decision waits while etcd is away; the same coordinator leads again meanwhile: the old decision is refused."""
    memory = MemoryStore()
    lab = Farm(FaultyStore(memory), FarmKeys(farm))
    old, attempt = lab.assigned()
    memory_of_leader = MemoryStore(memory.backend)
    memory.reachable = False
    with FarmRecord(memory, farm) as record:
        moved = Attempt(number=2, workers=("x",), epoch=old.epoch)
        waiting = record.write(Assign(task="t", attempt=moved, seen=attempt, fence=old.fence), timeout=60)
        new = Farm(FaultyStore(memory_of_leader), FarmKeys(farm)).lead()
        assert new.value == old.value
        assert not waiting.done()
        memory.reachable = True
        assert waiting.result(60) is Decision.DEPOSED
    assert lab.revision(Kind.ATTEMPT, "t") == attempt
