"""The guarded writes of a farm: what each compares, what it writes, and what it means that it was refused. Pure.

| write | guard | what is written |
|---|---|---|
| `Submit` | no such task, result, tombstone or key yet | the task, and its key |
| `Assign` | the leader's fence, the attempt as seen, the task is there | the attempt |
| `ClaimPlan` | the key as seen | which plan is submitted under it |
| `RecordResult` | the attempt is the one that this result is of, no result yet | the result; task and attempt are deleted |
| `RecordRetry` | the attempt is the one that failed | the failure; the attempt waits to be assigned again |
| `Cancel` | the task is there, its attempt as seen, no result yet | the result; task and attempt are deleted |
| `TakeBack` | the leader's fence, the attempt as seen | the attempt without its lost worker, which it excludes |
| `Meet`, `RecordMember` (`gang_writes.py`) | the attempt is the one that counts, not told yet | where they meet; a member's end |
| `Register`, `ForgetWorker` | the worker's record as seen; to forget it also the fence | the record |
| `Release` | the note as seen | workers on which nothing of an attempt is left are struck off |
| `ReportHealth` | the worker's record is there | how its machine is |
| `Archive` | the result as seen | a tombstone; result and failures are deleted |
| `ForgetTombstone` | the tombstone as seen | nothing is left of the task, but for its key |
| `ForgetKey` | the key as seen, nothing is left of its task | the key may name another task |

Rules:
- An attempt that is taken from workers that are there is noted under `endings/`, in the same write (`Cancel`, `TakeBack`).
- With an attempt of several workers go the records of their meeting and of those that have ended.
- "As seen" is a mod revision, 0 for a key that was not there. Ids are not used again, so it never comes back.
- The fence is a compare that was made when the decision was made (`Leadership.fence`). It is part of the write.
- A refused write reads, in the same transaction, what tells why. Where an earlier try's answer was lost it also tells
  whether that try did it: what is there is then what this write would have written.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol, TypeVar

from dtf_lightning.etcd.store import Compare, Delete, KeyValue, Put
from dtf_lightning.farm.record.codec import decode, encode
from dtf_lightning.farm.record.guarded import Guarded, Outcome, absent, as_seen, present
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.task_id import is_array_id
from dtf_lightning.farm.record.values import (
    Attempt,
    Ending,
    Envelope,
    FailedAttempt,
    KeyRecord,
    Meeting,
    MemberRecord,
    TaskOutcome,
    TaskSpecification,
    Tombstone,
    Value,
    WorkerRecord,
)
from dtf_lightning.farm.rules.health import WorkerHealth

V_co = TypeVar("V_co", covariant=True)


class LaneName(Enum):
    """Which lane a write goes to: the flood of one kind does not hold up the others."""

    SUBMIT = "submit"
    ASSIGN = "assign"
    RESULT = "result"
    OTHER = "other"


class Write(Protocol[V_co]):
    """One of the writes below."""

    @property
    def lane(self) -> LaneName: ...

    def guarded(self, keys: FarmKeys) -> Guarded:
        """The write itself."""
        ...

    def verdict(self, outcome: Outcome) -> V_co:
        """What became of it."""
        ...


# --- submitting ------------------------------------------------------------------------------------------------------


class Submission(Enum):
    """What became of a task that was submitted."""

    NEW = "new"
    KNOWN = "known"
    """It was submitted before, and is not done."""
    DONE = "done"
    """It was submitted before, and is done; perhaps archived."""
    SAME_KEY = "same key"
    """Another task was submitted under its idempotency key."""
    CONFLICT = "conflict"
    """Something else was submitted under its id."""


@dataclass(frozen=True, kw_only=True)
class Submitted:
    """`task` is the id under which it is known, which with `SAME_KEY` is another than was asked for."""

    submission: Submission
    task: str


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Accept a task. Once it is applied the task is never lost."""

    task: str
    specification: TaskSpecification
    lane = LaneName.SUBMIT

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        mine = keys.key(Kind.TASK, self.task)
        new = [mine, keys.key(Kind.DONE, self.task), keys.key(Kind.TOMBSTONE, self.task)]
        puts = [Put(mine, encode(self.specification))]
        if self.specification.key:
            new.append(keys.key(Kind.KEY, self.specification.key))
            puts.append(Put(new[-1], encode(KeyRecord(task=self.task))))
        return Guarded(f"submit {self.task}", tuple(map(absent, new)), tuple(puts), tuple(new))

    def verdict(self, outcome: Outcome) -> Submitted:
        """What became of it."""
        if outcome.applied:
            return Submitted(submission=Submission.NEW, task=self.task)
        task, done, tombstone, *key = outcome.found
        if done is not None or tombstone is not None:
            return Submitted(submission=Submission.DONE, task=self.task)
        if task is not None:
            if decode(Kind.TASK, task.value) != self.specification:
                return Submitted(submission=Submission.CONFLICT, task=self.task)
            ours = outcome.unsure and task.value == encode(self.specification)
            return Submitted(submission=Submission.NEW if ours else Submission.KNOWN, task=self.task)
        assert key, f"{self.task}: refused, and nothing is there"
        record = decode(Kind.KEY, _there(key[0]).value)
        assert isinstance(record, KeyRecord)
        return Submitted(submission=Submission.SAME_KEY, task=record.task)


@dataclass(frozen=True, kw_only=True)
class ClaimPlan:
    """Say which plan is submitted under an idempotency key, before its tasks are. The verdict: the plan that is."""

    key: str
    record: KeyRecord
    seen: int = 0
    """The mod revision of a record under this key of whose plan nothing was accepted; 0: none."""
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(Kind.KEY, plan_key(self.key))
        put = Put(key, encode(self.record))
        return Guarded(f"claim the key {self.key}", (as_seen(key, self.seen),), (put,), (key,))

    def verdict(self, outcome: Outcome) -> tuple[KeyRecord, int]:
        """The record that is there, and its mod revision."""
        if outcome.applied:
            return self.record, outcome.revision
        found = outcome.found[0]
        if found is None:
            return self.record, 0  # it was forgotten just now
        record = decode(Kind.KEY, found.value)
        assert isinstance(record, KeyRecord)
        return record, found.mod_revision


def plan_key(key: str) -> str:
    """Return the name of a plan's key in the record: no task's key is so named, since those hold no NUL."""
    return f"plan\0{key}"


# --- the leader's decisions ------------------------------------------------------------------------------------------


class Decision(Enum):
    """What became of a leader's decision. Only for counting: the watch is what changes the leader's state."""

    MADE = "made"
    DEPOSED = "deposed"
    """Another leads, or nobody."""
    CHANGED = "changed"
    """The record is not as the leader saw it."""
    GONE = "gone"
    """There is no such task any more."""


@dataclass(frozen=True, kw_only=True)
class Assign:
    """Give a task to its worker, or a gang's workers."""

    task: str
    attempt: Attempt
    seen: int
    """The mod revision of the attempt that the leader saw; 0 if there was none."""
    fence: Compare
    """Of the leadership that decided it."""
    lane = LaneName.ASSIGN

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        attempt, task = keys.key(Kind.ATTEMPT, self.task), keys.key(Kind.TASK, self.task)
        compares = (self.fence, as_seen(attempt, self.seen), present(task))
        put = Put(attempt, encode(self.attempt))
        return Guarded(f"assign {self.task}", compares, (put,), (self.fence.key, attempt, task))

    def verdict(self, outcome: Outcome) -> Decision:
        """What became of it."""
        return decided(outcome, self.attempt, self.fence)


@dataclass(frozen=True, kw_only=True)
class TakeBack:
    """Take a task back from a worker that is lost."""

    task: str
    attempt: Attempt
    """As it is to be: without workers, the lost one among those to avoid."""
    seen: int
    fence: Compare
    num_workers: int = 1
    """Of the attempt that is taken back."""
    ending: Ending | None = None
    """Of a gang: its other workers, which have to end their parts."""
    lane = LaneName.ASSIGN

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        attempt = keys.key(Kind.ATTEMPT, self.task)
        compares = (self.fence, as_seen(attempt, self.seen))
        then: tuple[Put | Delete, ...] = (
            Put(attempt, encode(self.attempt)),
            *gone_with(keys, self.task, self.num_workers),
            *noted(keys, self.task, self.seen, self.ending),
        )
        return Guarded(f"take back {self.task}", compares, then, (self.fence.key, attempt))

    def verdict(self, outcome: Outcome) -> Decision:
        """What became of it."""
        return decided(outcome, self.attempt, self.fence)


@dataclass(frozen=True, kw_only=True)
class ForgetWorker:
    """Take a worker's record away: it is lost, and has to register again."""

    worker: str
    seen: int
    fence: Compare
    lane = LaneName.ASSIGN

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        worker = keys.key(Kind.WORKER, self.worker)
        compares = (self.fence, as_seen(worker, self.seen))
        then = (Delete(worker), Delete(keys.key(Kind.HEALTH, self.worker)))
        return Guarded(f"forget {self.worker}", compares, then, (self.fence.key, worker))

    def verdict(self, outcome: Outcome) -> Decision:
        """What became of it."""
        if outcome.applied:
            return Decision.MADE
        leader, worker = outcome.found
        if worker is None:
            return Decision.MADE if outcome.unsure else Decision.GONE
        return Decision.CHANGED if leads(leader, self.fence) else Decision.DEPOSED


# --- results ---------------------------------------------------------------------------------------------------------


class Recording(Enum):
    """What became of a result."""

    RECORDED = "recorded"
    """This time or before."""
    STALE = "stale"
    """It is of an attempt that no longer counts."""


@dataclass(frozen=True, kw_only=True)
class RecordResult:
    """Record how a task ended, through any coordinator. `envelope.revision` names the attempt."""

    task: str
    envelope: Envelope
    ending: Ending | None = None
    """Workers that have to end their parts of the attempt; of most results there are none."""
    lane = LaneName.RESULT

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        task, attempt, done = (keys.key(kind, self.task) for kind in (Kind.TASK, Kind.ATTEMPT, Kind.DONE))
        compares = (as_seen(attempt, self.envelope.revision), absent(done))
        assert self.envelope.revision > 0, self.task
        gang = gone_with(keys, self.task, len(self.envelope.workers), is_over=True)
        note = noted(keys, self.task, self.envelope.revision, self.ending)
        then: tuple[Put | Delete, ...] = (Put(done, encode(self.envelope)), Delete(attempt), Delete(task), *gang, *note)
        return Guarded(f"result of {self.task}", compares, then, (done,))

    def verdict(self, outcome: Outcome) -> Recording:
        """What became of it."""
        if outcome.applied:
            return Recording.RECORDED
        (done,) = outcome.found
        # A cancellation names the attempt that it ended, too.
        recorded = None if done is None else _envelope(done)
        same = recorded is not None and _what_ended(recorded) == _what_ended(self.envelope)
        return Recording.RECORDED if same else Recording.STALE


@dataclass(frozen=True, kw_only=True)
class RecordRetry:
    """Record an attempt after which the task is tried again. `failed.revision` names the attempt."""

    task: str
    number: int
    """Of the attempt that failed."""
    failed: FailedAttempt
    attempt: Attempt
    """As it is to be: without workers."""
    lane = LaneName.RESULT

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        attempt, failed = keys.key(Kind.ATTEMPT, self.task), keys.key(Kind.FAILED, self.task, self.number)
        assert self.failed.revision > 0, self.task
        gang = gone_with(keys, self.task, len(self.failed.workers))
        then: tuple[Put | Delete, ...] = (Put(failed, encode(self.failed)), Put(attempt, encode(self.attempt)), *gang)
        return Guarded(f"retry of {self.task}", (as_seen(attempt, self.failed.revision),), then, (failed,))

    def verdict(self, outcome: Outcome) -> Recording:
        """What became of it."""
        return told_of(outcome, Kind.FAILED, self.failed.revision)


class Cancellation(Enum):
    """What became of a wish to cancel a task."""

    CANCELLED = "cancelled"
    """Now or before."""
    FINISHED = "finished"
    """It had ended otherwise before."""
    CHANGED = "changed"
    """Its attempt is not the one that was seen: decide again."""
    UNKNOWN = "unknown"
    """There is no such task."""


@dataclass(frozen=True, kw_only=True)
class Cancelled:
    """`seen`: with `CHANGED`, the mod revision of the attempt as it is (0 if there is none), and the attempt."""

    cancellation: Cancellation
    seen: int = 0
    attempt: Attempt | None = None


@dataclass(frozen=True, kw_only=True)
class Cancel:
    """End a task that is not done. Against its result whoever is first decides."""

    task: str
    envelope: Envelope
    """Its outcome is `CANCELLED`, `SKIPPED` or `EXPIRED`. Its `revision` is that of the attempt as seen, or 0."""
    ending: Ending | None = None
    """What the attempt holds on its workers, where it has some."""
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        assert self.envelope.outcome not in (TaskOutcome.COMPLETED, TaskOutcome.FAILED), self.task
        kinds = (Kind.TASK, Kind.ATTEMPT, Kind.DONE, Kind.TOMBSTONE)
        task, attempt, done, tombstone = (keys.key(kind, self.task) for kind in kinds)
        compares = (present(task), as_seen(attempt, self.envelope.revision), absent(done))
        gang = gone_with(keys, self.task, len(self.envelope.workers), is_over=True)
        note = noted(keys, self.task, self.envelope.revision, self.ending)
        then: tuple[Put | Delete, ...] = (Put(done, encode(self.envelope)), Delete(attempt), Delete(task), *gang, *note)
        return Guarded(f"cancel {self.task}", compares, then, (task, attempt, done, tombstone))

    def verdict(self, outcome: Outcome) -> Cancelled:
        """What became of it."""
        if outcome.applied:
            return Cancelled(cancellation=Cancellation.CANCELLED)
        task, attempt, done, tombstone = outcome.found
        if done is not None or tombstone is not None:
            ended = _envelope(done).outcome if done is not None else _tombstone(_there(tombstone)).outcome
            same = ended is self.envelope.outcome
            return Cancelled(cancellation=Cancellation.CANCELLED if same else Cancellation.FINISHED)
        if task is None:
            return Cancelled(cancellation=Cancellation.UNKNOWN)
        if attempt is None:
            return Cancelled(cancellation=Cancellation.CHANGED)
        as_it_is = decode(Kind.ATTEMPT, attempt.value)
        assert isinstance(as_it_is, Attempt)
        return Cancelled(cancellation=Cancellation.CHANGED, seen=attempt.mod_revision, attempt=as_it_is)


# --- the rest --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Register:
    """Write a worker's record, by the coordinator that holds its connection. The verdict: whether it is there."""

    worker: str
    record: WorkerRecord
    seen: int
    """The mod revision of the record as seen; 0 if there was none."""
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        worker = keys.key(Kind.WORKER, self.worker)
        put = Put(worker, encode(self.record))
        return Guarded(f"register {self.worker}", (as_seen(worker, self.seen),), (put,), (worker,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether the record is there, from now or before."""
        return outcome.applied or is_ours(outcome, outcome.found[0], self.record)


@dataclass(frozen=True, kw_only=True)
class Release:
    """Strike workers off an attempt that does not count any more. The verdict: whether that is done, from now or before."""

    task: str
    revision: str
    """The attempt's identity."""
    left: Ending
    """Without them."""
    seen: int
    """The mod revision of the note."""
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(Kind.ENDING, self.task, self.revision)
        then: Put | Delete = Put(key, encode(self.left)) if self.left.workers else Delete(key)
        return Guarded(f"release what {self.task} held", (as_seen(key, self.seen),), (then,), (key,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is done."""
        found = None if outcome.applied else outcome.found[0]
        return outcome.applied or found is None or is_ours(outcome, found, self.left)


@dataclass(frozen=True, kw_only=True)
class ReportHealth:
    """Write how a worker's machine is, in the place of what was reported before. The verdict: whether it is there."""

    worker: str
    health: WorkerHealth
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        worker, health = keys.key(Kind.WORKER, self.worker), keys.key(Kind.HEALTH, self.worker)
        compares = (present(worker),)
        return Guarded(f"health of {self.worker}", compares, (Put(health, encode(self.health)),), (health,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether it is there: `False` for a worker that was forgotten."""
        return outcome.applied or is_ours(outcome, outcome.found[0], self.health)


@dataclass(frozen=True, kw_only=True)
class Archive:
    """Forget a result that is in the archive; its id stays known. The verdict: whether it is forgotten."""

    task: str
    seen: int
    """The mod revision of the result."""
    tombstone: Tombstone
    failed: tuple[int, ...] = ()
    """Numbers of the attempts that failed."""
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        done, tombstone = keys.key(Kind.DONE, self.task), keys.key(Kind.TOMBSTONE, self.task)
        then: list[Put | Delete] = [Put(tombstone, encode(self.tombstone)), Delete(done)]
        then += [Delete(keys.key(Kind.FAILED, self.task, number)) for number in self.failed]
        return Guarded(f"archive {self.task}", (as_seen(done, self.seen),), tuple(then), (tombstone,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether the result is forgotten, from now or before."""
        return outcome.applied or outcome.found[0] is not None


@dataclass(frozen=True, kw_only=True)
class ForgetTombstone:
    """Forget an id that is too old to be submitted again. The verdict: whether it is forgotten."""

    task: str
    seen: int
    """The mod revision of the tombstone."""
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        tombstone = keys.key(Kind.TOMBSTONE, self.task)
        compares = (as_seen(tombstone, self.seen),)
        return Guarded(f"forget the id {self.task}", compares, (Delete(tombstone),), (tombstone,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether the id is forgotten, from now or before."""
        return outcome.applied or outcome.found[0] is None


@dataclass(frozen=True, kw_only=True)
class ForgetKey:
    """Forget an idempotency key of whose task nothing is left. The verdict: whether it is forgotten."""

    key: str
    seen: int
    """The mod revision of the key's record."""
    task: str
    """Which that record names."""
    lane = LaneName.OTHER

    def guarded(self, keys: FarmKeys) -> Guarded:
        """See the table above."""
        key = keys.key(Kind.KEY, self.key)
        left = (keys.key(kind, self.task) for kind in (Kind.TASK, Kind.DONE, Kind.TOMBSTONE))
        compares = (as_seen(key, self.seen), *map(absent, left))
        return Guarded(f"forget the key {self.key}", compares, (Delete(key),), (key,))

    def verdict(self, outcome: Outcome) -> bool:
        """Whether the key is forgotten, from now or before."""
        return outcome.applied or outcome.found[0] is None


def gone_with(keys: FarmKeys, task: str, num_workers: int, *, is_over: bool = False) -> tuple[Delete, ...]:
    """Return what is deleted with an attempt: of a gang its meeting, and its members that have ended.

    `is_over`: the task ends with it; of a training goes what is noted of its devices.
    """
    if is_over and is_array_id(task):
        return (Delete(keys.key(Kind.BORROWINGS, task)),)
    if num_workers < 2:
        return ()
    members = (Delete(keys.key(Kind.MEMBER, task, rank)) for rank in range(num_workers))
    return (Delete(keys.key(Kind.MEETING, task)), *members)


def noted(keys: FarmKeys, task: str, revision: int, ending: Ending | None) -> tuple[Put, ...]:
    """Return what is written of an attempt that does not count any more; it stands behind what takes the attempt away."""
    if ending is None or not ending.workers:
        return ()
    return (Put(keys.key(Kind.ENDING, task, revision), encode(ending)),)


def is_ours(outcome: Outcome, found: KeyValue | None, value: Value) -> bool:
    """Whether an earlier try of this write, whose answer was lost, has written what is there."""
    return outcome.unsure and found is not None and found.value == encode(value)


def told_of(outcome: Outcome, kind: Kind, revision: int) -> Recording:
    """What became of a record that is made once of an attempt, and is all that was read. `revision`: the attempt's identity."""
    if outcome.applied:
        return Recording.RECORDED
    (found,) = outcome.found
    if found is None:
        return Recording.STALE
    record = decode(kind, found.value)
    assert isinstance(record, FailedAttempt | Meeting | MemberRecord)
    return Recording.RECORDED if record.revision == revision else Recording.STALE


def decided(outcome: Outcome, attempt: Attempt, fence: Compare) -> Decision:
    """What became of a decision about an attempt, which read the leader, the attempt, and last what it needs to be there."""
    if outcome.applied:
        return Decision.MADE
    leader, found, *_ = outcome.found
    if is_ours(outcome, found, attempt):
        return Decision.MADE
    if outcome.found[-1] is None:
        return Decision.GONE
    return Decision.CHANGED if leads(leader, fence) else Decision.DEPOSED


def leads(leader: KeyValue | None, fence: Compare) -> bool:
    """Whether the leadership of this fence still holds. `leader`: its key, as it was read."""
    return leader is not None and leader.create_revision == fence.operand


def _there(kv: KeyValue | None) -> KeyValue:
    assert kv is not None
    return kv


def _envelope(kv: KeyValue) -> Envelope:
    envelope = decode(Kind.DONE, kv.value)
    assert isinstance(envelope, Envelope)
    return envelope


def _what_ended(envelope: Envelope) -> tuple[int, TaskOutcome]:
    return envelope.revision, envelope.outcome


def _tombstone(kv: KeyValue) -> Tombstone:
    tombstone = decode(Kind.TOMBSTONE, kv.value)
    assert isinstance(tombstone, Tombstone)
    return tombstone
