"""`dtf farm demo`: submits a real plan to a farm of this machine, kills and freezes its parts, and shows the books."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dtf_lightning.clock import poll_until
from dtf_lightning.errors import DtfError, SettingsError
from dtf_lightning.farm.client import Client, TaskInfo
from dtf_lightning.farm.demo import training
from dtf_lightning.farm.demo.project import write_project
from dtf_lightning.farm.demo.report import Row, problems, summary, table
from dtf_lightning.farm.http import FarmRefused, FarmUnreachable
from dtf_lightning.farm.plans.reading import read_plan
from dtf_lightning.farm.plans.requests import requests_of
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.sources import pack
from dtf_lightning.farm.testkit.local_farm import FarmShape, LocalFarm

ACT_TIMEOUT = 60.0
"""Seconds for an act to have its effect, on a busy machine."""
END_TIMEOUT = 120.0
SUITE = 4.0
"""Seconds of each task of the suite that needs a training's device."""
NUM_SUITE = 3
"""Its tasks: one more than the training leaves idle."""
LOOK = 0.1
"""Seconds between two looks at the tasks."""

Say = Callable[[str], object]
T = TypeVar("T")


class DemoFailed(DtfError):
    """Something that the demo waited for did not come about."""


@dataclass(frozen=True, kw_only=True)
class DemoSize:
    """How much is done."""

    seconds: float = 4.0
    """That each benchmark takes."""
    runs: int = 6
    """Of each benchmark."""
    rounds: int = 300
    """Of the longest tests."""
    grace: float = 3.0
    """Seconds for which a worker may be away."""
    trains: bool = True
    """Whether a training lends a device at the end; its starts of torch are most of what that takes."""


FAST = DemoSize(seconds=3.0, runs=6, rounds=50, grace=1.0, trains=False)


class Watcher:
    """Looks at a plan's tasks again and again, in a thread, and notes whom each attempt was given to."""

    def __init__(self, connect: Callable[[], Client], plan: str) -> None:
        self.tasks: dict[str, TaskInfo] = {}
        """Task -> as it was last seen."""
        self.given: dict[str, dict[int, str]] = {}
        """Task -> attempt's revision -> its worker."""
        self._connect, self._plan = connect, plan
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="dtf-demo-watcher")
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._ending.set()
        self._thread.join()

    def at_work(self) -> list[tuple[str, str]]:
        """Return (task, worker) of what workers have in hand. Only one coordinator knows whether it has started there."""
        found = list(self.tasks.items())
        return [(task, str(info.raw["worker_id"])) for task, info in found if info.status in ("assigned", "running")]

    def num_done(self) -> int:
        """Return how many tasks have ended."""
        return sum(info.done for info in list(self.tasks.values()))

    def _run(self) -> None:
        with self._connect() as client:
            while not self._ending.wait(LOOK):
                with contextlib.suppress(FarmUnreachable, FarmRefused):  # some part is down just now
                    for info in client.tasks(plan=self._plan):
                        self._note(info)

    def _note(self, info: TaskInfo) -> None:
        before = self.tasks.get(info.task_id)
        if before is not None and before.done:
            return  # another coordinator may be behind
        self.tasks[info.task_id] = info
        if info.revision and info.raw["worker_id"]:
            self.given.setdefault(info.task_id, {})[info.revision] = str(info.raw["worker_id"])


class Demo:
    """Plays the acts on a farm."""

    def __init__(self, farm: LocalFarm, watcher: Watcher, num_tasks: int, say: Say) -> None:
        self.struck: dict[str, str] = {}
        """Worker -> what was done to it."""
        self._farm, self._watcher, self._num_tasks, self._say = farm, watcher, num_tasks, say

    def play(self) -> None:
        """Play all acts, and wait for the end of all tasks. Raises `DemoFailed`."""
        until(lambda: self._watcher.num_done() >= 1, "the first task to end", ACT_TIMEOUT)
        self._kill_the_leader()
        self._kill_a_member()
        self._lose_a_machine()
        self._freeze_a_worker()
        until(lambda: self._watcher.num_done() == self._num_tasks, "all tasks to end", END_TIMEOUT)
        for part in self._farm.coordinators.values():
            part.first_line()

    def _kill_the_leader(self) -> None:
        leader = self._leader()
        self._say(f"kill -9 the leading coordinator, {leader}")
        began = time.monotonic()
        self._farm.coordinators[leader].kill()
        self._farm.proxies[leader].lead_to(None)
        until(lambda: self._farm.leader() not in (None, leader), "another leader", ACT_TIMEOUT)
        self._say(f"{self._leader()} leads, after {time.monotonic() - began:.1f} s; {leader} is started again")
        self._farm.start_coordinator(leader)

    def _kill_a_member(self) -> None:
        member = self._farm.etcd.leader()
        self._say(f"kill -9 the leading etcd member, {member.name}")
        done = self._watcher.num_done()
        member.kill()
        until(
            lambda: self._watcher.num_done() > done or self._watcher.num_done() == self._num_tasks,
            "another task to end",
            ACT_TIMEOUT,
        )
        self._say(f"tasks end; {member.name} is started again")
        member.start()

    def _lose_a_machine(self) -> None:
        task, worker = self._someone_at_work()
        self.struck[worker] = f"{worker} was killed"
        self._say(f"kill -9 the worker {worker} in mid-task, and all that it runs ({self._name(task)})")
        self._farm.lose_machine(worker)
        until(lambda: self._elsewhere(task, worker), f"{self._name(task)} to be tried elsewhere", ACT_TIMEOUT)
        self._say(f"{self._name(task)} is tried again; {worker} comes back")
        self._farm.start_worker(worker)

    def _freeze_a_worker(self) -> None:
        task, worker = self._someone_at_work()
        self.struck[worker] = f"{worker} stood still"
        self._say(f"freeze the worker {worker}, which runs {self._name(task)}")
        self._farm.workers[worker].freeze()
        try:
            until(lambda: self._elsewhere(task, worker), f"{self._name(task)} to be tried elsewhere", ACT_TIMEOUT)
        finally:
            self._farm.workers[worker].thaw()
        self._say(
            f"{self._name(task)} is tried again; {worker} goes on, and what it says of its attempt counts no more"
        )

    # --- the parts ---------------------------------------------------------------------------------------------------

    def _leader(self) -> str:
        return until(lambda: self._farm.leader() or "", "a leader", ACT_TIMEOUT)

    def _someone_at_work(self) -> tuple[str, str]:
        """Return a task that was just begun, and its worker, which nothing has been done to."""
        seen = {task for task, _ in self._watcher.at_work()}

        def just_begun() -> tuple[str, str] | None:
            for task, worker in self._watcher.at_work():
                if task not in seen and worker not in self.struck and self._has_begun(task):
                    return task, worker
            return None

        found = until(just_begun, "a task to begin", ACT_TIMEOUT)
        assert found is not None
        return found

    def _has_begun(self, task: str) -> bool:
        """Whether its latest attempt has written something."""
        revision = self._watcher.tasks[task].revision
        return revision in _with_output(self._farm, task)

    def _elsewhere(self, task: str, worker: str) -> bool:
        return self._watcher.tasks[task].raw["worker_id"] not in (None, worker) and self._has_begun(task)

    def _name(self, task: str) -> str:
        return str(self._watcher.tasks[task].raw["name"])


def until(condition: Callable[[], T], what: str, seconds: float) -> T:
    """Wait for something. Raises `DemoFailed` where it does not come about."""
    try:
        return poll_until(condition, seconds, what)
    except TimeoutError as error:
        raise DemoFailed(str(error)) from None


def run_demo(folder: Path | None, *, size: DemoSize, say: Callable[[str], object]) -> int:
    """Run the demo and print its report; 0 if the books balance, 1 if not. Call it from the main thread.

    Args:
        folder: for everything that is written; `None`: a temporary one, which goes if all is well.

    Raises `SettingsError` (the folder is in use, no etcd), `DemoFailed`, and `KeyboardInterrupt` on Ctrl-C and SIGTERM.
    """
    place = _prepare(folder)
    began = time.monotonic()
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        wrong = _run(place, size, lambda line: say(f"{time.monotonic() - began:5.0f} s  {line}"), say)
    finally:
        signal.signal(signal.SIGTERM, previous)
    if wrong:
        say("\nNot as it should be:")
        for line in wrong:
            say(f"  - {line}")
        say(f"Everything that was written lies in {place}.")
        return 1
    say(f"\nThe books balance. It took {time.monotonic() - began:.0f} s.")
    if folder is None:
        shutil.rmtree(place)
    return 0


def _prepare(folder: Path | None) -> Path:
    if folder is None:
        return Path(tempfile.mkdtemp(prefix="dtf-farm-demo-"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise SettingsError(f"the folder {folder} is not empty: give a new one")
    return folder.absolute()


def _run(place: Path, size: DemoSize, act: Say, say: Say) -> list[str]:
    act("start three etcd members, three coordinators and four workers")
    plan = read_plan(str(write_project(place / "project", seconds=size.seconds, runs=size.runs, rounds=size.rounds)))
    shape = FarmShape(members=3, coordinators=3, workers=4, worker_cpus=1.0, worker_grace=size.grace)
    with LocalFarm(place / "farm", shape, name="demo") as farm, farm.client() as client:
        act(f"the farm is up at {farm.url.partition(',')[0]} (token: {farm.token_file})")
        source = pack(place / "project")
        digest, plan_id, now = client.send_source(source), new_task_id(time.time()), time.time()
        requests = requests_of(plan, plan_id, lambda _: new_task_id(now), source=digest, folder=source.folder)
        accepted = [str(told["task_id"]) for told in client.submit_all(requests)]
        act(f"a plan of {len(accepted)} tasks is accepted: a test suite, and benchmarks after it")
        with contextlib.closing(Watcher(farm.client, plan_id)) as watcher:
            demo = Demo(farm, watcher, len(accepted), act)
            demo.play()
        act("all tasks have ended")
        story = _train(farm, client, place / "training", act, digest, source.folder) if size.trains else None
        rows = [_row(client.task(task), watcher, demo.struck, _with_output(farm, task)) for task in accepted]
        accepted += story.accepted if story is not None else ()
        recorded = {name: _recorded(farm, name, accepted) for name in farm.coordinators}
    told = [training.summary(story)] if story is not None else []
    for line in ("", *table(rows), "", summary(accepted, recorded, rows), *told):
        say(line)
    return problems(accepted, recorded, rows) + (training.problems(story) if story is not None else [])


def _train(farm: LocalFarm, client: Client, folder: Path, act: Say, source: str, inside: str) -> training.Story:
    def suite() -> list[str]:
        command = [sys.executable, "benchmark.py", "500", f"{SUITE:g}"]
        return [client.submit(command, name=f"suite, {n}", source=source, folder=inside) for n in range(NUM_SUITE)]

    return training.play(
        client,
        folder,
        farm.etcd.endpoint,
        suite=suite,
        act=act,
        until=lambda condition, what: until(condition, what, END_TIMEOUT),
    )


def _row(info: TaskInfo, watcher: Watcher, struck: dict[str, str], began: Sequence[int]) -> Row:
    attempts = int(info.raw["metadata"]["attempt"])
    given = watcher.given.get(info.task_id, {})
    workers = tuple(given.get(revision, "?") for revision in began)
    again = [struck.get(worker, f"an attempt on {worker} did not count") for worker in workers[:-1]]
    if attempts > 1 and not again:
        again = ["it was given to a worker that was struck before it began"]
    return Row(
        task=info.task_id,
        name=str(info.raw["name"]),
        attempts=attempts,
        workers=workers,
        why_again="; ".join(again) if info.status == "completed" else info.reason,
        outcome=info.status,
    )


def _with_output(farm: LocalFarm, task: str) -> list[int]:
    """Return the revisions of a task's attempts that have written something, oldest first."""
    folder = farm.files / "logs" / task
    return sorted(int(path.name) for path in folder.iterdir()) if folder.exists() else []


def _recorded(farm: LocalFarm, coordinator: str, accepted: Sequence[str]) -> Counter[str]:
    """Return what a coordinator has in DuckDB, once it has as much as was accepted, or its time is over."""
    with farm.client(coordinator) as client:

        def results() -> list[str]:
            return [str(row[0]) for row in client.query("SELECT task FROM farm.results")["rows"]]

        with contextlib.suppress(TimeoutError):
            poll_until(lambda: len(results()) >= len(accepted), ACT_TIMEOUT, "results in DuckDB")
        return Counter(results())
