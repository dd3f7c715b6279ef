"""Coordinators that crash anywhere while they archive: nothing is lost, and no database has anything twice.

Every call that a coordinator makes to etcd, to its database and to the archive is a place where it may die: before the
call, or after it and before it hears of it. The reference is a dictionary of what has ended.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import pytest

from dtf_lightning.errors import WatchCompacted
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.etcd.store import Watch
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.lane import Lane
from dtf_lightning.farm.record.mirror import Mirror
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.record.values import Envelope, TaskOutcome
from dtf_lightning.farm.results.archivist import ArchiveSettings, Archivist
from dtf_lightning.farm.results.store import FarmResults, Wanted
from dtf_lightning.farm.results.tables import from_parquet
from dtf_lightning.farm.results.tail import ResultsTail
from support.farm.results import MemoryArchive, SetClock, finish

SETTINGS = ArchiveSettings(tombstones=1000 * 86400.0)  # they have a test of their own
NUM_COORDINATORS = 2
LONG = 30 * 3600.0
"""Seconds after which a round looks no more at files of before."""


class Crash(BaseException):
    """The process dies here."""


@dataclass
class Fuse:
    """Dies at the n-th place from now; 0: nowhere."""

    left: int = 0
    burnt: int = 0

    def place(self) -> None:
        if self.left:
            self.left -= 1
            if not self.left:
                self.burnt += 1
                raise Crash


class Fragile:
    """Another object, each of whose calls has a place to die before and after it."""

    def __init__(self, inner: Any, fuse: Fuse) -> None:
        self._inner = inner
        self._fuse = fuse

    def __getattr__(self, name: str) -> Any:
        part = getattr(self._inner, name)
        if name == "maintenance":
            return Fragile(part, self._fuse)

        def call(*arguments: Any, **named: Any) -> Any:
            self._fuse.place()
            told = part(*arguments, **named)
            self._fuse.place()
            return told

        return call


@dataclass
class Coordinator:
    """One coordinator's life: its database outlives its process, unless it is lost, too."""

    world: World
    name: str
    results: FarmResults = field(default_factory=FarmResults)

    def start(self) -> None:
        world = self.world
        store, results = Fragile(world.store, world.fuse), Fragile(self.results, world.fuse)
        lane = Lane(store, "test")

        def write(write: Any) -> Any:
            future = lane.submit(write.guarded(world.keys), write.verdict)
            while lane.num_waiting:
                lane.step()
            return future

        self.archivist = Archivist(
            results, Fragile(world.archive, world.fuse), store, world.keys, write,
            settings=SETTINGS, name=self.name, read_again=self.read_again, clock=world.clock,
        )  # fmt: skip
        self.tail = ResultsTail(results, store, world.keys, read_archive=self.archivist.read_archive, clock=world.clock)
        self.mirror = Mirror(world.keys)
        self.watch_anew()

    def read_again(self) -> None:
        self.tail.read_again()

    def watch_anew(self) -> None:
        """What was not shown until now never will be."""
        revision = self.world.store.range(self.world.keys.leader).revision
        self.watch: Watch = self.world.store.watch(self.world.keys.prefix, start_revision=revision + 1)
        self.tail.read_again()

    def look(self) -> None:
        """Take in what the watch shows."""
        try:
            while events := self.watch.get(timeout=0):
                for change in self.mirror.apply(events):
                    self.tail.take(change)
        except WatchCompacted:
            self.watch_anew()
        while self.tail.step():
            pass


class World:
    """A farm, whose tasks end and whose coordinators die."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.fuse = Fuse()
        self.clock = SetClock()
        self.store = MemoryStore()
        self.keys = FarmKeys("lab")
        self.archive = MemoryArchive()
        self.ended: dict[str, tuple[Envelope, int]] = {}
        self.coordinators = [Coordinator(self, f"c{number}") for number in range(NUM_COORDINATORS)]
        for coordinator in self.coordinators:
            coordinator.start()

    def end_tasks(self) -> None:
        for _ in range(self.chance.randint(1, 4)):
            task = new_task_id(self.clock.now, self.chance.getrandbits(74))
            failures = self.chance.choice([0, 0, 2])
            outcome = self.chance.choice(list(TaskOutcome))
            self.ended[task] = finish(self.store, self.keys, task, failures=failures, outcome=outcome), failures

    def live(self) -> None:
        """One thing happens."""
        one = self.chance.choice(self.coordinators)
        match self.chance.choice(["tasks", "look", "look", "round", "round", "time", "gap", "crash"]):
            case "tasks":
                self.end_tasks()
            case "look":
                self.dying(one, one.look)
            case "round":
                self.dying(one, one.archivist.round)
            case "time":
                self.clock.now += self.chance.choice([1.0, 60.0, 601.0, LONG])
            case "gap":
                one.watch_anew()
            case "crash":
                one.start()

    def dying(self, one: Coordinator, act: Any) -> None:
        """Act, and perhaps die at it; whoever died is started again, perhaps without its database."""
        self.fuse.left = self.chance.choice([0, self.chance.randint(1, 40)])
        try:
            act()
        except Crash:
            if self.chance.random() < 0.3:
                one.results.close()
                one.results = FarmResults()
            one.start()
        self.fuse.left = 0

    def archived(self) -> set[str]:
        """Tasks that are in a file: in one, as long as no two coordinators archive at the same time."""
        files = self.archive.files.items()
        tasks = [task for name, data in files for task in from_parquet(data, name).column("task").to_pylist()]
        assert len(tasks) == len(set(tasks))
        return set(tasks)

    def kept(self, kind: Kind = Kind.DONE) -> set[str]:
        return {self.keys.parse(kv.key)[1][0] for kv in self.store.range(self.keys.folder(kind)).kvs}

    def check_nothing_is_lost(self) -> None:
        assert self.kept() | self.archived() == self.ended.keys()
        assert self.kept() | self.kept(Kind.TOMBSTONE) == self.ended.keys()

    def settle(self) -> None:
        """One coordinator archives; the other one only looks."""
        for _ in range(2):
            for one in self.coordinators:
                one.look()
            self.coordinators[0].archivist.round()
            self.clock.now += 601.0
        for one in self.coordinators:
            one.look()

    def check_databases(self) -> None:
        """All coordinators' are the same, and so is one that is made of the archive alone."""
        assert self.kept() == self.kept(Kind.FAILED) == set()
        assert self.archived() == self.kept(Kind.TOMBSTONE) == self.ended.keys()
        made = FarmResults()
        for name, data in self.archive.files.items():
            made.take_file(name, from_parquet(data, name))
        for results in (made, *(one.results for one in self.coordinators)):
            rows = results.page(Wanted(), limit=10_000)
            assert [row["task"] for row in rows] == sorted(self.ended, reverse=True)
            assert [len(row["failed_attempts"]) for row in rows] == [self.ended[row["task"]][1] for row in rows]
            assert all(results.envelope(task) == envelope for task, (envelope, _) in list(self.ended.items())[:5])
            assert results.counts() == {"results": len(self.ended), "kept_in_etcd": 0, "not_in_archive": 0}
            results.close()


def run(seed: int, num_actions: int) -> int:
    world = World(seed)
    for _ in range(num_actions):
        world.live()
        world.check_nothing_is_lost()
    world.settle()
    world.check_nothing_is_lost()
    world.check_databases()
    return world.fuse.burnt


def test_nothing_is_lost_and_nothing_is_twice():
    """Whatever dies where: each result is in etcd or in the archive at every moment, and in the end one row everywhere."""
    crashes = sum(run(seed, num_actions=20) for seed in range(4))
    assert crashes >= 3, "the places to die are not reached: this shows nothing"


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(1000, 1060))
def test_many_more(seed):
    run(seed, num_actions=120)
