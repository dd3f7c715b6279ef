"""A storm: faults of all kinds over a farm that works, and the books at its end. Replayable by its seed.

`python -m dtf_lightning.farm.testkit.storm --seed 7 --faults 30 --tasks 2000`

What is done, and when, is a pure function of the seed (`faults.plan_faults`, `orders.plan_orders`); what it hits may
differ where it names the leader, or a part that is down already: then it hits the next one.
"""

from __future__ import annotations

import argparse
import heapq
import logging
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dtf_lightning.errors import DtfError
from dtf_lightning.etcd.server.embedded import etcd_at
from dtf_lightning.farm.testkit.books import Books
from dtf_lightning.farm.testkit.clients import Clients
from dtf_lightning.farm.testkit.closing import close_the_books
from dtf_lightning.farm.testkit.faults import Fault, FaultKind, plan_faults
from dtf_lightning.farm.testkit.local_farm import FarmShape, LocalFarm, Part
from dtf_lightning.farm.testkit.orders import plan_orders

log = logging.getLogger(__name__)

LOOK = 0.1
"""Seconds between two looks at whether a part has ended by itself."""
MAX_RETRY = 60.0
"""Seconds for which a fault waits for a part that it can hit: one that was killed has its imports to do first."""


@dataclass(frozen=True, kw_only=True)
class StormSettings:
    """What a storm is made of."""

    seed: int
    num_faults: int = 30
    num_tasks: int = 2000
    num_real: int = 60
    """Tasks that real workers run; gangs and arrays are made by simulated ones."""
    pause: float = 1.0
    """Mean seconds between two faults."""
    longest_fault: float = 9.0
    """Seconds."""
    longest_task: float = 1.0
    """Seconds."""
    batch: int = 40
    """Most tasks that are submitted together."""
    shape: FarmShape = field(default_factory=lambda: FarmShape(crowds=2))


@dataclass(frozen=True, kw_only=True)
class StormReport:
    """What came of it."""

    books: Books
    problems: list[str]
    """What is not as it should be, in sentences."""
    faults: Mapping[FaultKind, int]
    """Those that hit something."""
    ended_by_themselves: list[str]
    """Coordinators that ended and were started again, with their last words: they are crash-only."""
    seconds: float
    longest_submission: float
    """Seconds until the slowest one was acknowledged."""


class Storm:
    """Plays faults on a farm. Call `play` from one thread."""

    def __init__(self, farm: LocalFarm) -> None:
        self.hit: Counter[FaultKind] = Counter()
        self.ended_by_themselves: list[str] = []
        self.problems: list[str] = []
        self._farm = farm
        self._down: set[str] = set()
        """Names of what is harmed now."""
        self._undo: list[tuple[float, int, Callable[[], object]]] = []
        self._num_undone = 0

    def play(self, faults: tuple[Fault, ...]) -> None:
        """Do all of it, and undo all of it, each at its time."""
        began = time.monotonic()
        for fault in faults:
            self._pass_until(began + fault.at)
            self._strike(fault)
        while self._undo:
            self._pass_until(self._undo[0][0])

    # --- time --------------------------------------------------------------------------------------------------------

    def _pass_until(self, moment: float) -> None:
        while True:
            now = time.monotonic()
            while self._undo and self._undo[0][0] <= now:
                heapq.heappop(self._undo)[2]()
            self._look_after()
            if now >= moment:
                return
            wake = min([moment, now + LOOK, *(due for due, _, _ in self._undo[:1])])
            time.sleep(max(wake - now, 0.0))

    def _look_after(self) -> None:
        """Start coordinators again that have ended by themselves, as whoever runs a farm does; nothing else may end."""
        for name, part in {**self._farm.coordinators, **self._farm.workers, **self._farm.crowds}.items():
            if name in self._down or part.runs:
                continue
            words = f"{name}: {part.last_words()[-600:]}"
            if name in self._farm.coordinators:
                self.ended_by_themselves.append(words)
                self._farm.proxies[name].lead_to(None)
                self._farm.start_coordinator(name)
            else:
                self.problems.append(f"a worker ended by itself, {words}")
                (self._farm.start_worker if name in self._farm.workers else self._farm.start_crowd)(name)

    # --- faults ------------------------------------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> None:
        end = time.monotonic() + MAX_RETRY
        while (name := self._victim(fault)) is None:
            if time.monotonic() >= end:
                log.info("no part can be hit: %s", fault)
                return
            self._pass_until(time.monotonic() + LOOK)
        log.info("%s: %s, for %.1f s", fault.kind.value, name, fault.lasts)
        self.hit[fault.kind] += 1
        self._down.add(name)
        undo = self._do(fault.kind, name)
        self._num_undone += 1

        def undone() -> None:
            undo()
            self._down.discard(name)

        heapq.heappush(self._undo, (time.monotonic() + fault.lasts, self._num_undone, undone))

    def _victim(self, fault: Fault) -> str | None:
        farm = self._farm
        if fault.kind in (FaultKind.KILL_LEADER, FaultKind.FREEZE_LEADER):
            leader = farm.leader()
            return leader if leader is not None and self._can_be_hit(leader) else None
        groups: dict[str, list[str]] = {
            "coordinator": list(farm.coordinators),
            "member": [member.name for member in farm.etcd.members],
            "worker": list(farm.workers),
            "crowd": list(farm.crowds),
            "proxy": [f"proxy of {name}" for name in farm.proxies],
        }
        names = groups[_GROUP[fault.kind]]
        turned = [names[(fault.which + step) % len(names)] for step in range(len(names))]
        return next(filter(self._can_be_hit, turned), None)

    def _can_be_hit(self, name: str) -> bool:
        """Whether a part is not harmed; one that is still starting is not hit again, or a slow machine would have none."""
        farm = self._farm
        part = {**farm.coordinators, **farm.workers, **farm.crowds}.get(name)
        return name not in self._down and (part is None or part.ready)

    def _do(self, kind: FaultKind, name: str) -> Callable[[], object]:
        """Do it, and return what undoes it."""
        farm = self._farm
        match _GROUP[kind]:
            case "coordinator" if kind in (FaultKind.KILL_LEADER, FaultKind.KILL_COORDINATOR):
                farm.coordinators[name].kill()
                farm.proxies[name].lead_to(None)
                return lambda: farm.start_coordinator(name)
            case "coordinator":
                return _freeze(farm.coordinators[name])
            case "member":
                member = next(member for member in farm.etcd.members if member.name == name)
                if kind is FaultKind.KILL_MEMBER:
                    member.kill()
                    return member.launch
                member.freeze()
                return member.thaw
            case "worker" if kind is FaultKind.FREEZE_WORKER:
                return _freeze(farm.workers[name])
            case "worker":
                (farm.workers[name].kill if kind is FaultKind.KILL_WORKER else lambda: farm.lose_machine(name))()
                return lambda: farm.start_worker(name)
            case "crowd" if kind is FaultKind.FREEZE_CROWD:
                return _freeze(farm.crowds[name])
            case "crowd":
                farm.crowds[name].kill()
                return lambda: farm.start_crowd(name)
            case _:
                proxy = farm.proxies[name.removeprefix("proxy of ")]
                if kind is FaultKind.CUT:
                    proxy.cut()
                    return lambda: None
                proxy.be_silent(True)
                return lambda: proxy.be_silent(False)


_GROUP = {
    FaultKind.KILL_LEADER: "coordinator",
    FaultKind.FREEZE_LEADER: "coordinator",
    FaultKind.KILL_COORDINATOR: "coordinator",
    FaultKind.FREEZE_COORDINATOR: "coordinator",
    FaultKind.KILL_MEMBER: "member",
    FaultKind.FREEZE_MEMBER: "member",
    FaultKind.KILL_WORKER: "worker",
    FaultKind.LOSE_MACHINE: "worker",
    FaultKind.FREEZE_WORKER: "worker",
    FaultKind.KILL_CROWD: "crowd",
    FaultKind.FREEZE_CROWD: "crowd",
    FaultKind.CUT: "proxy",
    FaultKind.SILENCE: "proxy",
}
"""What each kind hits."""


def _freeze(part: Part) -> Callable[[], object]:
    part.freeze()
    return part.thaw


def play_storm(folder: Path, settings: StormSettings) -> StormReport:
    """Start a farm in an empty folder, play a storm on it, end it, and return what came of it.

    Raises `DtfError` if the farm does not start.
    """
    began = time.monotonic()
    faults = plan_faults(settings.seed, settings.num_faults, pause=settings.pause, longest=settings.longest_fault)
    batches = plan_orders(
        settings.seed,
        settings.num_tasks,
        batch=settings.batch,
        longest=settings.longest_task,
        num_real=settings.num_real,
    )
    with LocalFarm(folder, settings.shape) as farm:
        log.info("the farm is up after %.1f s", time.monotonic() - began)
        runs = farm.folder / "runs"
        clients = Clients(farm.client, batches, faults[-1].at if faults else 1.0, runs)
        clients.start()
        storm = Storm(farm)
        storm.play(faults)
        log.info("the storm is over after %.1f s", time.monotonic() - began)
        books = close_the_books(farm, clients, runs)
        log.info("the books are closed after %.1f s", time.monotonic() - began)
    return StormReport(
        books=books,
        problems=[*clients.problems, *storm.problems, *books.problems()],
        faults=storm.hit,
        ended_by_themselves=storm.ended_by_themselves,
        seconds=time.monotonic() - began,
        longest_submission=clients.longest,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="A storm of faults over a farm on this machine, and its books.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=30)
    parser.add_argument("--tasks", type=int, default=2000)
    parser.add_argument(
        "--pause", type=float, default=1.0, help="mean seconds between two faults (default: %(default)g)"
    )
    parser.add_argument(
        "--longest", type=float, default=1.0, help="seconds of the longest attempt (default: %(default)g)"
    )
    parser.add_argument(
        "--etcd", type=Path, metavar="FILE", help="that its members run (default: the one that is found)"
    )
    parser.add_argument(
        "--folder", type=Path, help="empty; kept (default: a temporary one, kept if something is wrong)"
    )
    return parser


def _settings(arguments: argparse.Namespace) -> StormSettings:
    return StormSettings(
        seed=arguments.seed,
        num_faults=arguments.faults,
        num_tasks=arguments.tasks,
        num_real=max(arguments.tasks // 30, 1),
        pause=arguments.pause,
        longest_task=arguments.longest,
        shape=FarmShape(crowds=2, etcd=etcd_at(arguments.etcd) if arguments.etcd else None),
    )


def main() -> int:
    """Play the storm that the arguments describe; 1 if its books do not balance."""
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="dtf-storm-"))
    try:
        report = play_storm(folder, _settings(arguments))
    except DtfError as error:
        print(f"the storm could not be played: {error}", file=sys.stderr)
        return 1
    print(f"seed {arguments.seed}, {report.seconds:.0f} s: {report.books.summary()}")
    print(
        "  "
        + ", ".join(
            f"{count} x {kind.value}" for kind, count in sorted(report.faults.items(), key=lambda it: it[0].value)
        )
    )
    print(f"  slowest submission {report.longest_submission:.1f} s")
    for words in report.ended_by_themselves:
        print(f"  ended by itself: {words}")
    for problem in report.problems:
        print(f"  NOT AS IT SHOULD BE: {problem}")
    print(f"  {'the books balance' if not report.problems else f'all files are in {folder}'}")
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
