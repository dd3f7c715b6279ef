"""Trainings and ordinary tasks that come at random, over minutes of a played clock, beside slow and obvious rules.

The leader is the real one, on a real record in memory; workers are played: parts leave some time after they were asked,
tasks end when their time is over. After every quarter of a second the world is looked at from outside, by the record
alone, and nothing may go on for longer than it has to.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field

import pytest

from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.follower import read_record
from dtf_lightning.farm.record.guarded import Outcome
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.mirror import Mirror
from dtf_lightning.farm.record.task_id import array_id, new_task_id
from dtf_lightning.farm.record.trainings.writes import AskToYield
from dtf_lightning.farm.record.values import (
    NO_ATTEMPT,
    CoordinatorRecord,
    LeaderRecord,
    TaskOutcome,
    TaskSpecification,
    WorkerRecord,
)
from dtf_lightning.farm.record.writes import RecordResult, RecordRetry, Submit
from dtf_lightning.farm.rules.arrays import Tally
from dtf_lightning.farm.rules.attempts import AttemptOutcome, OutcomeKind
from dtf_lightning.farm.rules.needs import Need
from dtf_lightning.farm.rules.scheduling.scheduler import ShapeScheduler
from dtf_lightning.farm.rules.scheduling.yielding import AWAY, PRICE
from dtf_lightning.farm.server.envelopes import end_of_attempt
from dtf_lightning.farm.server.leader import Leader, Now

TICK = 0.25
PATIENCE = 2.0
"""Seconds for which what the rules do not want may last: looks are a quarter of a second apart."""
LONGEST_LEAVE = 4.0
LONGEST_AWAY = PRICE * (LONGEST_LEAVE + 2 * TICK)
BEGAN = 1_800_000_000.0


@dataclass
class World:
    """A farm of a few workers, with its leader."""

    seed: int
    time: float = 0.0
    tasks: dict[str, TaskSpecification] = field(default_factory=dict)
    """Ordinary ones that were submitted."""
    trainings: dict[str, TaskSpecification] = field(default_factory=dict)
    ends: dict[tuple[str, int], float] = field(default_factory=dict)
    """Attempt -> when it ends by itself."""
    leaves: dict[tuple[str, int], float] = field(default_factory=dict)
    """Attempt of a part that was asked -> when it has left."""
    asked: list[tuple[float, AskToYield]] = field(default_factory=list)
    since: dict[str, float] = field(default_factory=dict)
    """Complaint -> since when there is reason for it."""
    ended: dict[str, list[TaskOutcome]] = field(default_factory=dict)

    def __post_init__(self):
        self.chance = random.Random(self.seed)
        self.store, self.keys = MemoryStore(), FarmKeys("f")
        self.store.put(self.keys.key(Kind.COORDINATOR, "c"), encode(CoordinatorRecord(address="a", version="0")))
        self.cpus = {f"w{number}": self.chance.randint(1, 4) for number in range(self.chance.randint(1, 3))} | {"w": 2}
        for worker, number in self.cpus.items():
            record = WorkerRecord(coordinator="c", connection="x", session="s", devices={"cpu": float(number)})
            self.store.put(self.keys.key(Kind.WORKER, worker), encode(record))
        self.store.put(self.keys.leader, encode(LeaderRecord(coordinator="c")))
        read = read_record(self.store, self.keys)
        self.mirror = Mirror(self.keys)
        self.mirror.load(read.kvs, read.revision)
        self.watch = self.store.watch(self.keys.prefix, start_revision=read.revision + 1)
        epoch = self.mirror.get(Kind.LEADER).create_revision
        self.leader = Leader(self.mirror, self.keys, epoch, ShapeScheduler(), grace=4.0, now=self.now)

    @property
    def now(self):
        return Now(self.time, BEGAN + self.time)

    # --- what happens ------------------------------------------------------------------------------------------------

    def submit(self, specification, *, array=False):
        task = new_task_id(BEGAN + self.time, self.chance.getrandbits(74))
        task = array_id(task) if array else task
        (self.trainings if array else self.tasks)[task] = specification
        self.make(Submit(task=task, specification=specification))
        return task

    def submit_some(self):
        if self.chance.random() < 0.08:
            need = Need(amounts={"cpu": self.chance.randint(1, 2)})
            priority = self.chance.choice([0, 0, 0, -20, 50])
            for _ in range(self.chance.choice([1, 1, 3])):
                self.submit(
                    TaskSpecification(command=("t",), needs=(need,), priority=priority, submitted=BEGAN + self.time)
                )
        if len(self.trainings) < 3 and self.chance.random() < 0.03:
            least = self.chance.choice([1, 1, 2, 3])
            self.submit(
                TaskSpecification(
                    command=("p",),
                    needs=(Need(amounts={"cpu": self.chance.choice([1, 1, 2])}),),
                    training=least,
                    array=self.chance.randint(least, 6),
                    priority=-10,
                    suspend_for=self.chance.choice([None, 50, 0]),
                    submitted=BEGAN + self.time,
                ),
                array=True,
            )

    def make(self, write):
        result = self.store.txn([], [write.guarded(self.keys).transaction()])
        (nested,) = result.nested
        found = tuple(kvs[0] if kvs else None for kvs in nested.gets)
        write.verdict(Outcome(applied=nested.succeeded, revision=result.revision, found=found))
        return nested.succeeded

    def look(self):
        while events := self.watch.get(timeout=0):
            for change in self.mirror.apply(events):
                self.leader.changed(change, self.now)
        for array, revision in self.leader.take_tallies():
            outcomes = Counter(one.value for one in self.ended.get(array, []))
            self.leader.tallied(array, revision, Tally(outcomes=outcomes), self.now)

    def decide(self):
        for _ in range(4):
            self.look()
            for write in self.leader.decide(100, self.now):
                if isinstance(write, AskToYield):
                    self.check_asked(write)
                    self.asked.append((self.time, write))
                assert self.make(write), write
                if (
                    hasattr(write, "envelope")
                    and (live := self.specification(write.task)) is not None
                    and live.array_id
                ):
                    self.ended.setdefault(live.array_id, []).append(write.envelope.outcome)
        self.look()

    def play(self):
        """Workers: what is asked to leave does so in a while, and what is over ends."""
        for part, request in self.requests().items():
            self.leaves.setdefault((part, request.revision), self.time + self.chance.choice([0.25, 1.0, LONGEST_LEAVE]))
        for task, held in self.running().items():
            key = task, held.mod_revision
            specification = self.specification(task)
            over = self.ends.setdefault(key, self.time + self.chance.choice([0.5, 2.0, 15.0]))
            kind = None
            if specification.training:
                kind = OutcomeKind.YIELDED if self.leaves.get(key, 1e9) <= self.time else None
            elif over <= self.time:
                kind = OutcomeKind.COMPLETED
            if kind is not None:
                self.end(task, held, kind)

    def end(self, task, held, kind):
        told = AttemptOutcome(kind=kind, exit_code=0, started=0.0, ended=BEGAN + self.time)
        specification = self.specification(task)
        write = end_of_attempt(task, specification, held.value, held.mod_revision, told, held.value.workers[0])
        assert self.make(write)
        if isinstance(write, RecordResult) and specification.array_id:
            self.ended.setdefault(specification.array_id, []).append(write.envelope.outcome)
        assert isinstance(write, RecordResult | RecordRetry)

    def step(self, *, new=True):
        if new:
            self.submit_some()
        self.decide()
        self.play()
        self.decide()
        self.check()
        self.time += TICK

    # --- what the record shows ---------------------------------------------------------------------------------------

    def specification(self, task):
        held = self.mirror.get(Kind.TASK, task)
        return held.value if held is not None else None

    def running(self):
        return {task: held for (task,), held in self.mirror.all(Kind.ATTEMPT).items() if held.value.workers}

    def requests(self):
        """Those of attempts that are not over."""
        return {
            part: held.value
            for (part,), held in self.mirror.all(Kind.YIELD).items()
            if self.mirror.seen(Kind.ATTEMPT, part) == held.value.revision
        }

    def free(self):
        free = dict(self.cpus)
        for task, held in self.running().items():
            free[held.value.workers[0]] -= self.cpu(task)
        return free

    def cpu(self, task):
        return self.specification(task).needs[0].amounts["cpu"]

    def parts(self, training):
        """Its parts that are there and not done, and those of them that have a worker."""
        parts = {task for (task,), held in self.mirror.all(Kind.TASK).items() if held.value.array_id == training}
        return parts, {part for part in parts if part in self.running()}

    def waiting_tasks(self):
        return [task for task in self.tasks if self.specification(task) is not None and task not in self.running()]

    # --- what may not be ---------------------------------------------------------------------------------------------

    def check_asked(self, write):
        """Only parts are asked, for work that waits and may have their devices; and no part soon after it has come back."""
        specification = self.specification(write.task)
        assert specification.training, "an ordinary task was asked"
        wanted = self.specification(write.request.wanted_by)
        assert wanted.priority >= specification.priority
        wanted_by = write.request.wanted_by
        assert wanted_by in self.waiting_tasks() or len(self.parts(wanted_by)[1]) < wanted.training
        before = [at for at, one in self.asked if one.task == write.task]
        assert not before or self.time - before[-1] >= AWAY, "it flaps"
        training = specification.array_id
        _, running = self.parts(training)
        staying = running - self.requests().keys() - {write.task}
        if len(staying) < specification.training:
            least = specification.suspend_for
            assert least is not None, "what it keeps was asked for"
            assert wanted.priority >= least

    def check(self):
        free = self.free()
        assert all(left >= 0 for left in free.values()), free
        told = {*self.idle(free), *self.blocked(free), *self.broken()}
        self.since = {one: self.since.get(one, self.time) for one in told}
        for one, since in self.since.items():
            assert self.time - since <= PATIENCE, (self.seed, self.time, one)

    def idle(self, free):
        """A training below its maximum beside devices that are idle and that nothing else waits for."""
        if self.requests() or self.waiting_tasks():
            return
        for training, specification in self.trainings.items():
            parts, running = self.parts(training)
            able = [part for part in parts - running if not self.is_away(part)]
            need = specification.needs[0].amounts["cpu"]
            missing = max(1, specification.training - len(running))
            others_begin = any(
                other != training and len(self.parts(other)[1]) < one.training and self.parts(other)[0]
                for other, one in self.trainings.items()
            )
            everything_away = missing > 1 and any(self.is_away(part) for part in parts)
            if len(able) >= missing and not others_begin and not everything_away and self.has_room(free, need, missing):
                yield f"{training} could have {missing} more"

    def has_room(self, free, need, number):
        """Whether so many fit, as they fit."""
        return sum(left // need for left in free.values()) >= number

    def blocked(self, free):
        """A task that waits beside parts that could make room, of which none was asked."""
        if self.requests():
            return
        seats = self.leader._scheduler.seats()
        for task in self.waiting_tasks():
            specification = self.specification(task)
            for worker in self.cpus:
                if seats[worker].held_for is not None:
                    continue  # for others that have waited for longer
                more = 0
                for training, of in self.trainings.items():
                    here = [part for part in self.parts(training)[1] if self.where(part) == worker]
                    surplus = max(0, len(self.parts(training)[1]) - of.training)
                    if of.suspend_for is not None and specification.priority >= of.suspend_for:
                        surplus = len(here)
                    if of.priority <= specification.priority:
                        more += sum(sorted((self.cpu(part) for part in here), reverse=True)[:surplus])
                if more and free[worker] < self.cpu(task) <= free[worker] + more:
                    yield f"{task} waits beside parts on {worker}"

    def broken(self):
        """A training that holds devices with fewer parts than it can train with."""
        for training, specification in self.trainings.items():
            parts, running = self.parts(training)
            if 0 < len(running) < specification.training and parts.isdisjoint(self.requests()):
                yield f"{training} runs with {len(running)} of {specification.training}"

    def where(self, part):
        return self.running()[part].value.workers[0]

    def is_away(self, part):
        held = self.mirror.get(Kind.ATTEMPT, part)
        yielded = (held.value if held is not None else NO_ATTEMPT).yielded
        return bool(yielded) and BEGAN + self.time < yielded + LONGEST_AWAY


@pytest.mark.parametrize("seed", [*range(5), 53])
def test_over_random_arrivals(seed):
    """Half a minute in which all comes, as long in which nothing does; then trainings end, and all that is left is done."""
    world = World(seed)
    try:
        for number in range(240):
            world.step(new=number < 120)
        able = [
            training
            for training, asked in world.trainings.items()
            if world.has_room(world.cpus, asked.needs[0].amounts["cpu"], asked.training)
        ]
        while any(world.specification(task) is not None for task in (*world.tasks, *able)):
            assert world.time < 300.0, "something starves"
            for training in world.trainings:
                for part in sorted(world.parts(training)[1]):
                    world.end(part, world.running()[part], OutcomeKind.COMPLETED)
            world.step(new=False)
    finally:
        world.store.close()
