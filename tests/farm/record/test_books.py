"""A farm's life in guarded writes whose answers are lost at random, held to a slow, obvious book without etcd or batches.

The book is a few dictionaries and makes one write at a time; it knows nothing of revisions, batches or lost answers.
What is said of every write must be the same, and what is there at the end.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field, replace

import pytest

from dtf_lightning.etcd.election import Election
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.etcd.store import Compare, Store
from dtf_lightning.farm.record.codec import decode
from dtf_lightning.farm.record.follower import read_record
from dtf_lightning.farm.record.guarded import Limits
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.lane import Lane
from dtf_lightning.farm.record.mirror import Mirror
from dtf_lightning.farm.record.values import Attempt, Envelope, FailedAttempt, TaskOutcome, TaskSpecification, Tombstone
from dtf_lightning.farm.record.writes import (
    Archive,
    Assign,
    Cancel,
    Cancellation,
    Decision,
    Recording,
    RecordResult,
    RecordRetry,
    Submission,
    Submit,
    TakeBack,
)
from support.farm.stores import FaultyStore

TASKS = [f"t{number}" for number in range(5)]


@dataclass
class Book:
    """The reference. An attempt's identity is a number that no other has; `epoch` counts leaders."""

    epoch: int = 0
    tasks: dict[str, str] = field(default_factory=dict)  # what was asked for
    attempts: dict[str, int] = field(default_factory=dict)
    done: dict[str, tuple[int, TaskOutcome]] = field(default_factory=dict)
    failed: dict[tuple[str, int], int] = field(default_factory=dict)
    tombstones: dict[str, TaskOutcome] = field(default_factory=dict)
    identities: itertools.count = field(default_factory=lambda: itertools.count(1))

    def submit(self, task: str, asked: str) -> Submission:
        if task in self.done or task in self.tombstones:
            return Submission.DONE
        if task in self.tasks:
            return Submission.KNOWN if self.tasks[task] == asked else Submission.CONFLICT
        self.tasks[task] = asked
        return Submission.NEW

    def assign(self, task: str, seen: int, epoch: int) -> Decision:
        if epoch == self.epoch and self.attempts.get(task, 0) == seen and task in self.tasks:
            self.attempts[task] = next(self.identities)
            return Decision.MADE
        if task not in self.tasks:
            return Decision.GONE
        return Decision.CHANGED if epoch == self.epoch else Decision.DEPOSED

    def take_back(self, task: str, seen: int, epoch: int) -> Decision:
        if epoch == self.epoch and self.attempts.get(task, 0) == seen:
            self.attempts[task] = next(self.identities)
            return Decision.MADE
        if task not in self.attempts:
            return Decision.GONE
        return Decision.CHANGED if epoch == self.epoch else Decision.DEPOSED

    def result(self, task: str, attempt: int, outcome: TaskOutcome) -> Recording:
        if self.attempts.get(task, 0) == attempt and task not in self.done:
            self._end(task, attempt, outcome)
            return Recording.RECORDED
        return Recording.RECORDED if self.done.get(task) == (attempt, outcome) else Recording.STALE

    def retry(self, task: str, attempt: int, number: int) -> Recording:
        if self.attempts.get(task, 0) == attempt:
            self.attempts[task] = next(self.identities)
            self.failed[task, number] = attempt
            return Recording.RECORDED
        return Recording.RECORDED if self.failed.get((task, number)) == attempt else Recording.STALE

    def cancel(self, task: str, seen: int) -> Cancellation:
        if task in self.tasks and self.attempts.get(task, 0) == seen:
            self._end(task, seen, TaskOutcome.CANCELLED)
            return Cancellation.CANCELLED
        if task in self.done or task in self.tombstones:
            outcome = self.done[task][1] if task in self.done else self.tombstones[task]
            return Cancellation.CANCELLED if outcome is TaskOutcome.CANCELLED else Cancellation.FINISHED
        return Cancellation.CHANGED if task in self.tasks else Cancellation.UNKNOWN

    def archive(self, task: str, seen: bool, outcome: TaskOutcome) -> bool:
        if seen and task in self.done:
            del self.done[task]
            self.tombstones[task] = outcome
        return task in self.tombstones

    def _end(self, task: str, attempt: int, outcome: TaskOutcome) -> None:
        del self.tasks[task]
        self.attempts.pop(task, None)
        self.done[task] = attempt, outcome


class Life:
    """Makes one decision after the other on what was seen last, in the record and in the book alike."""

    def __init__(self, chance: random.Random, store: Store, farm: str) -> None:
        self.chance = chance
        self.keys = FarmKeys(farm)
        self.store = store
        self.faulty = FaultyStore(self.store)
        self.lane = Lane(self.faulty, "test", limits=Limits(num_writes=chance.choice([1, 3, 125])))
        self.book = Book()
        self.said: list[tuple[object, object]] = []
        self.serial = itertools.count()
        self.look()

    def look(self) -> None:
        """Let all be committed, and see what there is: decisions are made on this until the next look."""
        while self.lane.num_waiting:
            self.faulty.faults = self.chance.choices([None, "applied", "lost", "away"], [4, 2, 1, 1], k=1)
            self.lane.step()
        self.faulty.faults = []
        read = read_record(self.store, self.keys)
        self.mirror = Mirror(self.keys)
        self.mirror.load(read.kvs, read.revision)
        self.attempts = dict(self.book.attempts)
        self.epoch = self.book.epoch
        leader = self.mirror.get(Kind.LEADER)
        self.fence = Compare(self.keys.leader, "create", "=", leader.create_revision if leader else 1)
        self.done = {task: self.store.get(self.keys.key(Kind.DONE, task)) for task in TASKS}

    def lead(self) -> None:
        """Somebody else does, from now on; what was decided before and not committed is too late."""
        while self.lane.num_waiting:
            self.lane.step()
        self.store.delete(self.keys.leader)
        lease = self.store.lease(60)
        Election(self.store, self.keys.leader).try_acquire(b'{"coordinator":"c","v":1}', lease.id)
        lease.abandon()
        self.book.epoch += 1

    def write(self, write, expected, read=lambda verdict: verdict) -> None:
        future = self.lane.submit(write.guarded(self.keys), write.verdict, timeout=1e9)
        self.said.append((lambda: read(future.result(0)), (type(write).__name__, expected)))

    def act(self) -> None:
        task, number = self.chance.choice(TASKS), next(self.serial)
        # What was seen, or seen wrongly: an identity of nobody.
        right = self.chance.random() < 0.9
        seen = self.mirror.seen(Kind.ATTEMPT, task) if right else 10**9
        known = self.attempts.get(task, 0) if right else 10**9
        fresh = Attempt(number=number, workers=(f"w{number}",))
        match self.chance.choice(
            ["submit", "assign", "assign", "back", "result", "result", "retry", "cancel", "archive"]
        ):
            case "submit":
                asked = self.chance.choice("aab")
                specification = TaskSpecification(command=(asked,), submitted=float(number))
                expected = self.book.submit(task, asked)
                self.write(Submit(task=task, specification=specification), expected, lambda said: said.submission)
            case "assign":
                expected = self.book.assign(task, known, self.epoch)
                self.write(Assign(task=task, attempt=fresh, seen=seen, fence=self.fence), expected)
            case "back" if known:
                expected = self.book.take_back(task, known, self.epoch)
                back = replace(fresh, workers=())
                self.write(TakeBack(task=task, attempt=back, seen=seen, fence=self.fence), expected)
            case "result" if known:
                outcome = self.chance.choice([TaskOutcome.COMPLETED, TaskOutcome.FAILED])
                envelope = Envelope(outcome=outcome, attempt=1, revision=seen)
                for _ in range(self.chance.choice([1, 1, 2])):
                    self.write(RecordResult(task=task, envelope=envelope), self.book.result(task, known, outcome))
            case "retry" if known:
                failed = FailedAttempt(revision=seen, workers=(), reason="", ended=1.0)
                retry = RecordRetry(task=task, number=number, failed=failed, attempt=replace(fresh, workers=()))
                self.write(retry, self.book.retry(task, known, number))
            case "cancel":
                envelope = Envelope(outcome=TaskOutcome.CANCELLED, attempt=0, revision=seen)
                expected = self.book.cancel(task, known)
                self.write(Cancel(task=task, envelope=envelope), expected, lambda said: said.cancellation)
            case "archive":
                kv = self.done[task]
                outcome = decode(Kind.DONE, kv.value).outcome if kv else TaskOutcome.EXPIRED
                archive = Archive(
                    task=task,
                    seen=kv.mod_revision if kv else 10**9,
                    tombstone=Tombstone(outcome=outcome, archived=1.0),
                )
                self.write(archive, self.book.archive(task, kv is not None, outcome))

    def names(self, kind: Kind) -> set[str]:
        return {self.keys.parse(kv.key)[1][0] for kv in self.store.range(self.keys.folder(kind)).kvs}

    def check(self) -> None:
        self.look()
        for said, (write, expected) in self.said:
            assert (write, said()) == (write, expected)
        assert self.names(Kind.TASK) == self.book.tasks.keys()
        assert self.names(Kind.ATTEMPT) == self.book.attempts.keys()
        assert self.names(Kind.DONE) == self.book.done.keys()
        assert self.names(Kind.TOMBSTONE) == self.book.tombstones.keys()
        assert {kv.version for kv in self.store.range(self.keys.folder(Kind.DONE)).kvs} <= {1}
        for task, asked in self.book.tasks.items():
            assert self.mirror.get(Kind.TASK, task).value.command == (asked,)
        for task, (_, outcome) in self.book.done.items():
            assert decode(Kind.DONE, self.done[task].value).outcome is outcome


def live(seed: int, store: Store, farm: str) -> None:
    """A hundred decisions about five tasks, committed in batches; half of the transactions go wrong."""
    chance = random.Random(seed)
    life = Life(chance, store, farm)
    life.lead()
    life.look()
    for _ in range(100):
        life.act()
        if chance.random() < 0.1:
            life.look()
        if chance.random() < 0.02:
            life.lead()
    life.check()


@pytest.mark.parametrize("seed", range(40))
def test_the_book_balances(seed: int):
    """In memory."""
    live(seed, MemoryStore(), "lab")


@pytest.mark.parametrize("seed", range(3))
def test_the_book_balances_on_etcd(store: Store, farm: str, seed: int):
    """The same lives, on the twin and on a real one."""
    live(seed, store, farm)
