"""Leaders over a farm's whole life, without processes: whatever goes wrong, each accepted task is recorded once.

The world is a real record in a store and everything around it is played: workers that come, go and finish, leaders that
die and whose last writes come late, watches that lag. After every step nobody has more than there is; when all is
calm in the end, the book balances.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

import pytest

from dtf_lightning.etcd.election import Election
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.record.codec import decode, encode
from dtf_lightning.farm.record.follower import read_record
from dtf_lightning.farm.record.gang_writes import RecordMember
from dtf_lightning.farm.record.guarded import Outcome
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.mirror import Mirror
from dtf_lightning.farm.record.task_id import array_and_index
from dtf_lightning.farm.record.values import (
    NO_ATTEMPT,
    Attempt,
    CoordinatorRecord,
    FailedAttempt,
    LeaderRecord,
    MemberRecord,
    TaskOutcome,
    TaskSpecification,
    WorkerRecord,
)
from dtf_lightning.farm.record.writes import Assign, Cancel, Decision, RecordResult, RecordRetry, Register, Submit
from dtf_lightning.farm.rules import arrays
from dtf_lightning.farm.rules.arrays import Tally
from dtf_lightning.farm.rules.attempts import SUSPECT, AttemptOutcome, Follow, OutcomeKind, what_follows
from dtf_lightning.farm.rules.needs import Need
from dtf_lightning.farm.rules.scheduling.scheduler import ShapeScheduler
from dtf_lightning.farm.server.envelopes import end_of_attempt, ended_without_attempt, envelope_of
from dtf_lightning.farm.server.leader import Leader, Now
from dtf_lightning.farm.server.scheduling.endings import ending_of, release_of

GRACE = 4.0
CPUS = 3.0
WORKERS = ["w0", "w1", "w2"]


@dataclass
class Watcher:
    """A coordinator's mirror with its watch, which may lag; it may lead."""

    world: World
    name: str

    def __post_init__(self):
        keys = self.world.keys
        read = read_record(self.world.store, keys)
        self.mirror = Mirror(keys)
        self.mirror.load(read.kvs, read.revision)
        self.watch = self.world.store.watch(keys.prefix, start_revision=read.revision + 1)
        self.leader: Leader | None = None
        self.epoch = 0
        self.late = []

    def look(self):
        """Take in all that the watch has, at once: the mirror is ahead of the changes that are told."""
        pending = []
        while events := self.watch.get(timeout=0):
            pending += events
        for change in self.mirror.apply(pending):
            if change.kind is Kind.LEADER:
                held = self.mirror.get(Kind.LEADER)
                if held is not None and held.create_revision == self.epoch:
                    self.leader = Leader(
                        self.mirror, self.world.keys, self.epoch, ShapeScheduler(), grace=GRACE, now=self.world.now
                    )
                else:
                    self.leader = None
            elif self.leader is not None:
                self.leader.changed(change, self.world.now)
        if self.leader is not None:
            self.look_up()
            for array, revision in self.leader.take_tallies():
                self.leader.tallied(array, revision, self.world.tally(array), self.world.now)

    def look_up(self):
        for task in self.leader.take_lookups():
            keys, store = self.world.keys, self.world.store
            done = store.get(keys.key(Kind.DONE, task))
            if done is not None or store.get(keys.key(Kind.TASK, task)) is None:
                self.leader.looked_up(task, decode(Kind.DONE, done.value).outcome if done is not None else None)

    def decide(self, chance):
        """Write what it decides: at once, or late, when it may be deposed; some of it is lost on the way."""
        if self.leader is None:
            return
        for write in self.leader.decide(chance.choice([1, 3, 100]), self.world.now):
            fate = chance.choices(["now", "late", "away"], [8, 1, 1])[0]
            if fate == "now":
                self.answered(write, self.world.make(write))
            elif fate == "late":
                self.late.append((self.leader, write))
            else:
                self.leader.not_made(write)

    def finish_late(self):
        for leader, write in self.late:
            verdict = self.world.make(write)
            if leader is self.leader:
                self.answered(write, verdict)
        self.late.clear()

    def answered(self, write, verdict):
        assert verdict is not Decision.DEPOSED or self.mirror.seen(Kind.LEADER) != self.world.eye.mirror.seen(
            Kind.LEADER
        )


class World:
    """The record, and a chance that plays all the rest."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.store = MemoryStore()
        self.keys = FarmKeys("f")
        self.now = Now(0.0, 1_800_000_000.0)
        self.accepted: dict[str, TaskSpecification] = {}
        self.serial = 0
        self.store.put(self.keys.key(Kind.COORDINATOR, "c"), encode(CoordinatorRecord(address="a", version="0")))
        self.watchers = [Watcher(self, name) for name in ("l0", "l1")]
        self.eye = Watcher(self, "eye")  # sees all at once: what workers are told

    def make(self, write):
        guarded = write.guarded(self.keys)
        result = self.store.txn([], [guarded.transaction()])
        (nested,) = result.nested
        found = tuple(kvs[0] if kvs else None for kvs in nested.gets)
        if isinstance(write, Assign) and nested.succeeded:
            self.check_dependencies(write.task)
        return write.verdict(Outcome(applied=nested.succeeded, revision=result.revision, found=found))

    # --- what happens ------------------------------------------------------------------------------------------------

    def submit(self):
        known = list(self.accepted)
        after = self.chance.sample(known, min(len(known), self.chance.choice([0, 0, 1, 2])))
        cut = self.chance.randint(0, len(after))
        specification = TaskSpecification(
            command=("x",),
            needs=(Need(amounts={"cpu": self.chance.choice([1, 2, 3])}),),
            gang=self.chance.choice([1, 1, 1, 2]),
            after=tuple(after[:cut]),
            after_any=tuple(after[cut:]),
            retries=self.chance.choice([0, 2]),
            expires=self.chance.choice([None, None, None, 30.0]),
            submitted=self.now.wall,
        )
        task = f"t{self.serial:03}"
        self.serial += 1
        if self.chance.random() < 0.15:
            task = f"{self.serial:030}000000"
            specification = replace(specification, array=self.chance.choice([1, 3, 6]), gang=1)
        self.make(Submit(task=task, specification=specification))
        self.accepted[task] = specification

    def connect(self, worker, *, present=True):
        held = self.eye.mirror.get(Kind.WORKER, worker)
        self.serial += 1
        record = WorkerRecord(
            coordinator="c" if present else "", connection=str(self.serial), session="s", devices={"cpu": CPUS}
        )
        if held is not None or present:
            self.make(Register(worker=worker, record=record, seen=held.mod_revision if held else 0))

    def finish(self, kinds=tuple(OutcomeKind)):
        """A worker tells how an attempt ended: of those in the record."""
        attempts = list(self.eye.mirror.all(Kind.ATTEMPT).items())
        running = [(task, held) for (task,), held in attempts if held.value.workers and self.is_here(held.value)]
        if not running:
            return
        task, held = self.chance.choice(running)
        attempt, specification = held.value, self.specification(task)
        kind = self.chance.choice([one for one in kinds if one is not OutcomeKind.CANCELLED])
        if len(attempt.workers) > 1:
            self.finish_member(task, attempt, held.mod_revision, kind)
            return
        lost = kind is OutcomeKind.LOST
        follow = what_follows(kind, failures=attempt.failures, retries=specification.retries, lost=attempt.lost + lost)
        if follow is Follow.AGAIN:
            again = replace(
                attempt,
                workers=(),
                failures=attempt.failures + (not lost),
                lost=attempt.lost + lost,
                excluded=attempt.workers,
            )
            failed = FailedAttempt(revision=held.mod_revision, workers=attempt.workers, reason="r", ended=0.0)
            self.make(RecordRetry(task=task, number=attempt.number, failed=failed, attempt=again))
            return
        outcome = TaskOutcome.COMPLETED if follow is Follow.COMPLETED else TaskOutcome.FAILED
        envelope = envelope_of(specification, outcome, "", attempt=attempt, revision=held.mod_revision)
        self.make(RecordResult(task=task, envelope=envelope))

    def finish_member(self, task, attempt, revision, kind):
        """One member of a gang; the leader tells the end of all."""
        rank = self.chance.choice([rank for rank, worker in enumerate(attempt.workers) if self.is_connected(worker)])
        outcome = AttemptOutcome(kind=kind, exit_code=0 if kind is OutcomeKind.COMPLETED else 1)
        record = MemberRecord(revision=revision, worker=attempt.workers[rank], outcome=outcome)
        self.make(RecordMember(task=task, rank=rank, member=record))

    def is_here(self, attempt):
        """Whether a worker that makes it is connected."""
        return any(self.is_connected(worker) for worker in attempt.workers)

    def is_connected(self, worker):
        held = self.eye.mirror.get(Kind.WORKER, worker)
        return held is not None and bool(held.value.coordinator)

    def cancel(self):
        live = [task for (task,), _ in self.eye.mirror.all(Kind.TASK).items()]
        if live:
            task = self.chance.choice(live)
            seen = self.eye.mirror.seen(Kind.ATTEMPT, task)
            held = self.eye.mirror.get(Kind.ATTEMPT, task)
            workers = held.value.workers if held is not None else ()
            envelope = ended_without_attempt(
                self.specification(task), TaskOutcome.CANCELLED, "", number=0, revision=seen, workers=workers
            )
            attempt = held.value if held is not None else NO_ATTEMPT
            self.make(Cancel(task=task, envelope=envelope, ending=ending_of(self.specification(task), attempt)))

    def gone(self):
        """A worker says that nothing is left of an attempt that does not count any more."""
        endings = [
            (*names, one) for names, held in self.eye.mirror.all(Kind.ENDING).items() for one in held.value.workers
        ]
        if endings:
            self.make(release_of(self.eye.mirror, *self.chance.choice(endings)))

    def elect(self, watcher):
        self.store.delete(self.keys.leader)
        lease = self.store.lease(1e9)
        value = encode(LeaderRecord(coordinator=watcher.name))
        watcher.epoch = Election(self.store, self.keys.leader).try_acquire(value, lease.id).epoch

    def step(self):
        event = self.chance.choices(
            ["submit", "decide", "look", "finish", "connect", "away", "cancel", "elect", "late", "time", "gone"],
            [6, 12, 10, 8, 3, 2, 1, 2, 3, 3, 1],
        )[0]
        watcher = self.chance.choice(self.watchers)
        if event == "submit":
            self.submit()
        elif event == "decide":
            watcher.decide(self.chance)
        elif event == "look":
            watcher.look()
        elif event == "finish":
            self.finish()
        elif event == "connect":
            self.connect(self.chance.choice(WORKERS))
        elif event == "away":
            self.connect(self.chance.choice(WORKERS), present=False)
        elif event == "cancel":
            self.cancel()
        elif event == "gone":
            self.gone()
        elif event == "elect":
            self.elect(watcher)
        elif event == "late":
            watcher.finish_late()
        else:
            passed = self.chance.choice([0.5, 5.0])
            self.now = Now(self.now.monotonic + passed, self.now.wall + passed)
        self.eye.look()

    def calm(self):
        """No more faults: what was accepted ends."""
        self.elect(self.watchers[0])
        self.connect("w2", present=False)
        for _ in range(40 * len(self.accepted) + 40):
            for watcher in self.watchers:
                watcher.look()
                watcher.finish_late()
            self.eye.look()
            self.now = Now(self.now.monotonic + 1.0, self.now.wall)
            for worker in WORKERS[:2]:  # the third does not come back
                held = self.eye.mirror.get(Kind.WORKER, worker)
                if held is None or not held.value.coordinator:
                    self.connect(worker)
            self.watchers[0].look()
            self.watchers[0].decide(self.chance)
            self.eye.look()
            self.finish(kinds=(OutcomeKind.COMPLETED, OutcomeKind.FAILED))
            self.eye.look()
            self.gone()
            self.eye.look()
            self.check()
            if not self.eye.mirror.all(Kind.TASK) and not self.eye.mirror.all(Kind.ENDING):
                return

    def specification(self, task):
        return self.eye.mirror.get(Kind.TASK, task).value

    def tally(self, array):
        """As coordinators count it, from the record."""
        told = [decode(Kind.DONE, kv.value) for kv in self.store.range(self.keys.key(Kind.DONE, array)[:-6]).kvs]
        return Tally(outcomes=Counter(envelope.outcome.value for envelope in told))

    # --- what must hold ----------------------------------------------------------------------------------------------

    def check(self):
        """In the record nobody has more than there is, what is being ended counted in, and an attempt's task is there."""
        used = dict.fromkeys(WORKERS, 0.0)
        for (task,), held in self.eye.mirror.all(Kind.ATTEMPT).items():
            assert self.eye.mirror.get(Kind.TASK, task) is not None, f"{task}: an attempt without a task"
            for worker in held.value.workers:
                used[worker] += self.specification(task).needs[held.value.alternative].amounts["cpu"]
        for held in self.eye.mirror.all(Kind.ENDING).values():
            for worker in held.value.workers:
                used[worker] += held.value.need.amounts["cpu"]
        assert all(amount <= CPUS for amount in used.values()), used

    def check_dependencies(self, task):
        """When an attempt is written, all that its task comes after has ended as it must have."""
        specification = self.accepted.get(task) or self.accepted[array_and_index(task)[0]]
        for name in (*specification.after, *specification.after_any):
            done = self.store.get(self.keys.key(Kind.DONE, name))
            assert done is not None, f"{task} was started before {name} had ended"
            if name in specification.after:
                assert decode(Kind.DONE, done.value).outcome is TaskOutcome.COMPLETED

    def check_books(self):
        assert not self.eye.mirror.all(Kind.TASK), {
            task: self.explain(task) for (task,) in self.eye.mirror.all(Kind.TASK)
        }
        assert not self.eye.mirror.all(Kind.ATTEMPT)
        assert not self.eye.mirror.all(Kind.ENDING)
        assert not self.eye.mirror.all(Kind.MEMBER)
        outcomes = {}
        for kv in self.store.range(self.keys.folder(Kind.DONE)).kvs:
            assert kv.version == 1, f"{kv.key} was written {kv.version} times"
            outcomes[kv.key.rpartition("/")[2]] = decode(Kind.DONE, kv.value)
        instances = {task for task in outcomes if task not in self.accepted}
        assert outcomes.keys() - instances == self.accepted.keys()
        for task, specification in self.accepted.items():
            of_it = [one for one in instances if array_and_index(one)[0] == task]
            numbers = sorted(array_and_index(one)[1] for one in of_it)
            assert numbers == list(range(len(numbers))), "they are born in order, and each ends"
            if outcomes[task].outcome in (TaskOutcome.COMPLETED, TaskOutcome.FAILED):
                assert len(numbers) == specification.array
                ended = Counter(outcomes[one].outcome.value for one in of_it)
                assert not specification.array or outcomes[task].counts == ended
        for task, envelope in outcomes.items():
            if task in instances or self.accepted[task].array:
                continue
            if envelope.outcome is TaskOutcome.SKIPPED:
                befores = [outcomes[name].outcome for name in self.accepted[task].after]
                assert any(outcome is not TaskOutcome.COMPLETED for outcome in befores)
            if envelope.outcome is TaskOutcome.EXPIRED:
                assert self.accepted[task].expires is not None
            if envelope.outcome in (TaskOutcome.COMPLETED, TaskOutcome.FAILED):
                assert envelope.attempt >= 1

    def explain(self, task):
        leader = self.watchers[0].leader
        return leader.explain(task, self.now.wall) if leader is not None else "nobody leads"


@pytest.mark.parametrize("seed", range(20))
def test_the_books(seed, monkeypatch):
    monkeypatch.setattr(arrays, "WINDOW", 2)
    world = World(seed)
    world.elect(world.watchers[0])
    for _ in range(250):
        world.step()
        world.check()
    world.calm()
    world.check_books()
    world.store.close()


def test_a_task_that_loses_its_workers_fails():
    """After three lost workers it is the task that is suspected."""
    world = World(0)
    world.accepted["t"] = TaskSpecification(command=("x",), submitted=world.now.wall)
    world.make(Submit(task="t", specification=world.accepted["t"]))
    watcher = world.watchers[0]
    world.elect(watcher)
    for _ in range(SUSPECT):
        for worker in WORKERS:
            world.connect(worker)
        world.eye.look()
        watcher.look()
        for write in watcher.leader.decide(10, world.now):
            world.make(write)
        world.eye.look()
        (worker,) = world.eye.mirror.get(Kind.ATTEMPT, "t").value.workers
        world.connect(worker, present=False)
        watcher.look()
        world.now = Now(world.now.monotonic + GRACE, world.now.wall)
        for _ in range(2):  # forget the worker, and then take its task back
            for write in watcher.leader.decide(0, world.now):
                world.make(write)
            watcher.look()
        world.eye.look()
    done = decode(Kind.DONE, world.store.get(world.keys.key(Kind.DONE, "t")).value)
    assert done.outcome is TaskOutcome.FAILED
    assert "3 workers were lost" in done.reason
    world.store.close()


def test_a_worker_that_does_not_know_how_it_ended_is_the_third_lost():
    """Its own words alone would not say why a task that may be tried again is not: that the task is suspected does."""
    told = AttemptOutcome(kind=OutcomeKind.LOST, reason="nobody saw how it ended", started=1.0, ended=2.0)
    attempt = Attempt(number=SUSPECT, workers=("w",), lost=SUSPECT - 1)
    write = end_of_attempt("t", TaskSpecification(command=("x",), retries=1), attempt, 7, told, "w")
    assert isinstance(write, RecordResult)
    assert write.envelope.outcome is TaskOutcome.FAILED
    assert write.envelope.reason == (
        "3 workers were lost while they ran it, w the last of them: the task itself is suspected (nobody saw how it ended)"
    )


def play(world, watcher, *, make=True):
    """Look, and write what is decided; with `make=False` only return it."""
    world.eye.look()
    watcher.look()
    writes = watcher.leader.decide(10, world.now)
    for write in writes if make else ():
        world.make(write)
    world.eye.look()
    watcher.look()
    return writes


def submit(world, task, **fields):
    world.accepted[task] = TaskSpecification(command=("x",), submitted=world.now.wall, **fields)
    world.make(Submit(task=task, specification=world.accepted[task]))


def test_a_deposed_leader_assigns_nothing():
    """Its decision is of before; the worker that it chose is full by now."""
    world = World(0)
    old, new = world.watchers
    world.elect(old)
    world.connect("w0")
    submit(world, "t1", needs=(Need(amounts={"cpu": CPUS}),))
    (late,) = play(world, old, make=False)
    submit(world, "t2", needs=(Need(amounts={"cpu": CPUS}),), priority=100)
    world.elect(new)
    play(world, new)
    assert world.eye.mirror.get(Kind.ATTEMPT, "t2").value.workers == ("w0",)
    assert world.make(late) is Decision.DEPOSED
    world.eye.look()
    world.check()
    world.store.close()


def test_a_task_of_a_lost_worker_goes_elsewhere():
    world = World(0)
    watcher = world.watchers[0]
    world.elect(watcher)
    world.connect("w0")
    submit(world, "t")
    play(world, watcher)
    world.connect("w0", present=False)
    watcher.look()
    world.now = Now(world.now.monotonic + GRACE, world.now.wall)
    for _ in range(2):
        play(world, watcher)
    # The lost one is back, and first in the alphabet; the other one gets the task.
    world.connect("w0")
    world.connect("w1")
    play(world, watcher)
    attempt = world.eye.mirror.get(Kind.ATTEMPT, "t").value
    assert (attempt.workers, attempt.excluded, attempt.number) == (("w1",), ("w0",), 2)
    world.store.close()


def test_an_assignment_that_comes_after_its_worker_was_forgotten_is_taken_back():
    world = World(0)
    watcher = world.watchers[0]
    world.elect(watcher)
    world.connect("w0")
    submit(world, "t")
    (late,) = play(world, watcher, make=False)
    world.connect("w0", present=False)
    watcher.look()
    world.now = Now(world.now.monotonic + GRACE, world.now.wall)
    play(world, watcher)
    assert world.make(late) is Decision.MADE
    play(world, watcher)
    assert world.eye.mirror.get(Kind.ATTEMPT, "t").value.workers == ()
    world.store.close()


def test_a_task_that_is_gone_before_it_is_told_to_be_ready():
    """Both are cancelled before the leader looks: the second would be ready now, and is gone already."""
    world = World(0)
    watcher = world.watchers[0]
    world.elect(watcher)
    submit(world, "t1")
    submit(world, "t2", after_any=("t1",))
    watcher.look()
    for task in ("t1", "t2"):
        envelope = ended_without_attempt(world.accepted[task], TaskOutcome.CANCELLED, "", number=0, revision=0)
        world.make(Cancel(task=task, envelope=envelope))
    world.connect("w0")
    assert play(world, watcher) == []
    world.check()
    world.store.close()


def test_a_worker_that_comes_back_in_time_keeps_its_task():
    world = World(0)
    world.accepted["t"] = TaskSpecification(command=("x",), submitted=world.now.wall)
    world.make(Submit(task="t", specification=world.accepted["t"]))
    watcher = world.watchers[0]
    world.elect(watcher)
    world.connect("w0")
    world.eye.look()
    watcher.look()
    for write in watcher.leader.decide(10, world.now):
        world.make(write)
    world.eye.look()
    seen = world.eye.mirror.seen(Kind.ATTEMPT, "t")
    world.connect("w0", present=False)
    watcher.look()
    world.now = Now(GRACE / 2, world.now.wall)
    assert watcher.leader.decide(10, world.now) == []
    world.eye.look()
    world.connect("w0")
    watcher.look()
    world.now = Now(10 * GRACE, world.now.wall)
    assert watcher.leader.decide(10, world.now) == []
    world.eye.look()
    assert world.eye.mirror.seen(Kind.ATTEMPT, "t") == seen
    world.store.close()
