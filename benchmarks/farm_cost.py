"""What a task costs: CPU of each process of a farm, in microseconds a task, and by part with a profiler.

python benchmarks/farm_cost.py [flood|true|submit|start|memory ...] [--tasks N] [--turns N] [--profile FOLDER]

Seconds of `/proc/PID/stat` (user and system) mean something on a machine that others use, too, once they are divided by how much
longer than on a quiet machine a fixed piece of work takes meanwhile (`Yardstick`); the time on the wall does not. To compare two states of the source, run it in turns, each with its own source in PYTHONPATH.

- `flood`: no-ops on 200 simulated workers, in submissions of 250.
- `true`: `/bin/true` on one real worker of 4 slots.
- `submit`: one `dtf farm run -- true` after the other, on a warm farm: CPU of the command and of the farm.
- `start`: how long the commands' imports take, in user seconds.
- `memory`: resident memory of an idle coordinator and worker, and how much of it is their own.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from dtf_lightning.clock import poll_until
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.testkit.leftovers import processes_of
from dtf_lightning.farm.testkit.local_farm import LocalFarm
from farm import TIMEOUT, as_installed, cpu_seconds, done, farm, requests

SUBMITTED_TOGETHER = 250
WARM_UP = 500
QUIET = 560e-6
"""Seconds that a piece of the yardstick's work takes where nothing else runs; a machine's own."""
ON_THE_WALL = "on the wall"
VERBOSE = "FARM_COST_THREADS"
TICK = os.sysconf("SC_CLK_TCK")
Figures = dict[str, float]


def flood(tasks: int, profile: Path | None) -> Figures:
    with (
        farm(members=1, coordinators=1, workers=0, crowds=1, crowd_size=200) as started,
        started.client() as client,
    ):
        client.submit_all(requests(WARM_UP))
        poll_until(lambda: done(started) == WARM_UP, TIMEOUT, "the first tasks")
        return _measured(started, client, requests(tasks), WARM_UP, profile)


def true(tasks: int, profile: Path | None) -> Figures:
    with farm(members=1, coordinators=1, workers=1, worker_cpus=4.0) as started, started.client() as client:
        client.submit_all(_trues(50))
        poll_until(lambda: done(started) == 50, TIMEOUT, "the first tasks")
        return _measured(started, client, _trues(tasks), 50, profile)


def submit(tasks: int, profile: Path | None) -> Figures:
    """A command is measured by its own share of the CPU, since the time on the wall is the machine's."""
    del profile
    with farm(members=1, coordinators=1, workers=1, worker_cpus=4.0) as started:
        variables = as_installed(started)
        there = [sys.executable, "-m", "dtf_lightning", "farm", "run", "--no-source", "--", "true"]
        subprocess.run(there, env=variables, check=True, stdout=subprocess.DEVNULL)
        parts, walls, own = _parts(started), [], 0.0
        before = {name: read() for name, read in parts.items()}
        for _ in range(tasks):
            used, began = os.times(), time.perf_counter()
            subprocess.run(there, env=variables, check=True, stdout=subprocess.DEVNULL)
            walls.append(time.perf_counter() - began)
            now = os.times()
            own += now.children_user + now.children_system - used.children_user - used.children_system
        figures = {name: (read() - before[name]) / tasks for name, read in parts.items()}
    return {"command": own / tasks, **figures, f"{ON_THE_WALL}, the quickest": min(walls)}


def start(tasks: int, profile: Path | None) -> Figures:
    del profile
    with tempfile.TemporaryDirectory(prefix="dtf-bytecode-") as folder:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        return _starts(tasks, {**kept, "PYTHONPYCACHEPREFIX": folder})


def _starts(tasks: int, variables: dict[str, str]) -> Figures:
    commands = {
        "python": ["-c", "pass"],
        "dtf --help": ["-m", "dtf_lightning", "--help"],
        "dtf farm run --help": ["-m", "dtf_lightning", "farm", "run", "--help"],
        "imports of dtf farm run": ["-c", "import dtf_lightning.farm.cli.run, dtf_lightning.farm.cli.plan"],
    }
    figures: Figures = {}
    for name, command in commands.items():
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env=variables)
        used = os.times()
        for _ in range(tasks):
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, env=variables)
        now = os.times()
        figures[name] = (now.children_user + now.children_system - used.children_user - used.children_system) / tasks
    return figures


def memory(tasks: int, profile: Path | None) -> Figures:
    """Megabytes."""
    del profile, tasks
    with farm(members=1, coordinators=1, workers=1) as started:
        time.sleep(5)
        found: Figures = {}
        for name, pid in (("coordinator", started.coordinators["c0"].pid), ("worker", started.workers["w0"].pid)):
            told = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE))
            found[name] = int(told["Rss"]) / 1000
            found[f"{name}, its own"] = (int(told["Private_Clean"]) + int(told["Private_Dirty"])) / 1000
    return found


def _trues(number: int) -> list[dict]:
    now = time.time()
    needs = [{"amounts": {"cpu": 1.0}}]
    return [{"task_id": new_task_id(now), "command": ["/bin/true"], "needs": needs} for _ in range(number)]


def _measured(started: LocalFarm, client, asked: list[dict], already: int, profile: Path | None) -> Figures:
    parts = _parts(started)
    profiler = _Profiler(started.coordinators["c0"].pid, profile) if profile is not None else None
    pid = started.coordinators["c0"].pid
    threads = _thread_seconds(pid)
    before, began = {name: read() for name, read in parts.items()}, time.monotonic()
    for at in range(0, len(asked), SUBMITTED_TOGETHER):
        client.submit_all(asked[at : at + SUBMITTED_TOGETHER])
    poll_until(lambda: done(started) == already + len(asked), TIMEOUT, "all tasks")
    seconds = time.monotonic() - began
    figures = {name: (read() - before[name]) / len(asked) for name, read in parts.items()}
    if profiler is not None:
        profiler.end()
    for name, spent in _thread_seconds(pid).items():
        user, system = (
            1e6 * (now - then) / len(asked) for now, then in zip(spent, threads.get(name, (0.0, 0.0)), strict=True)
        )
        if VERBOSE in os.environ and user + system > 1:
            print(f"thread {name}: {user:,.0f} us a task in its program, {system:,.0f} in the kernel")
    return {**figures, "all": sum(figures.values()), ON_THE_WALL: seconds / len(asked)}


def _parts(started: LocalFarm) -> Mapping[str, Callable[[], float]]:
    """What gives the seconds of each part of a farm so far."""
    found: dict[str, Callable[[], float]] = {}
    for name, pid in (("coordinator", started.coordinators["c0"].pid), ("etcd", started.etcd.leader().server.pid)):
        found[name] = lambda pid=pid: cpu_seconds(pid)
    for name, part in (*started.workers.items(), *started.crowds.items()):
        found["worker" if name in started.workers else "simulated workers"] = lambda pid=part.pid: cpu_seconds(pid)
    for name in started.workers:
        # The keeper and its guard, with all that has run below them and was waited for.
        others = [pid for pid in processes_of(started.folder / name) if pid != started.workers[name].pid]
        found["keeper"] = lambda pids=tuple(others): sum(map(cpu_seconds, pids))
        found["the tasks' processes"] = lambda pids=tuple(others): max(map(_children_seconds, pids), default=0.0)
    return found


def _thread_seconds(pid: int) -> dict[str, tuple[float, float]]:
    """Return seconds of each thread of a process, user and system. Python's own have its name: the first is the event loop's."""
    found = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
        words = rest.split()
        found[f"{task.name} {name}"] = int(words[11]) / TICK, int(words[12]) / TICK
    return found


def _children_seconds(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[13]) + int(words[14])) / TICK


class Yardstick:
    """A thread that does the same small piece of work again and again: what it takes says how much the machine gives for a second.

    Two processes on the two threads of a core get half of it each, and a cache that others fill gives less: the same work
    takes up to twice as many seconds of CPU on a busy machine.
    """

    def __init__(self) -> None:
        self._took: list[float] = []
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> float:
        """Return how many times as long as on a quiet machine it took."""
        self._ends.set()
        self._thread.join()
        return statistics.mean(self._took) / QUIET

    def _run(self) -> None:
        while not self._ends.wait(0.03):
            began = time.thread_time()
            told = json.loads(json.dumps([{"key": number, "value": [str(number)] * 3} for number in range(200)]))
            sum(len(one["value"]) + one["key"] for one in told)
            self._took.append(time.thread_time() - began)


class _Profiler:
    """py-spy on the coordinator, for as long as tasks run; it says where the interpreter's lock was held."""

    def __init__(self, pid: int, folder: Path) -> None:
        program = shutil.which("py-spy") or "py-spy"
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / f"coordinator-{pid}.txt"
        self._process = subprocess.Popen(
            [program, "record", "--gil", "--threads", "--nonblocking", "-r", "250", "-f", "raw", "-o", str(self._file), "-p", str(pid), "-d", "600"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(1.5)

    def end(self) -> None:
        self._process.send_signal(2)
        self._process.wait()
        print(shares(self._file.read_text()))


def shares(collapsed: str, most: int = 45) -> str:
    """Return a table of where samples were: by thread, by line itself, and by function with all that it calls."""
    threads: Counter[str] = Counter()
    own: Counter[str] = Counter()
    within: Counter[str] = Counter()
    for line in collapsed.splitlines():
        stack, _, number = line.rpartition(" ")
        frames = stack.split(";")
        threads[re.sub(r"\(0x\w+\)|\d+", "", frames[0])] += int(number)
        own[frames[-1]] += int(number)
        for frame in {re.sub(r":\d+\)", ")", frame) for frame in frames[1:]}:
            within[frame] += int(number)
    total = sum(threads.values()) or 1
    told = [f"{total} samples"]
    for name, counted in (("by thread", threads), ("itself", own), ("with what it calls", within)):
        told += ["", f"{name}:"]
        told += [f"{100 * number / total:5.1f} %  {frame}" for frame, number in counted.most_common(most)]
    return "\n".join(told)


MEASURES = {
    "flood": (flood, 3000),
    "true": (true, 300),
    "submit": (submit, 10),
    "start": (start, 5),
    "memory": (memory, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["flood"], choices=list(MEASURES))
    parser.add_argument("--tasks", type=int, default=0, help="of each measurement (default: as fits each)")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument(
        "--profile", type=Path, metavar="FOLDER", help="profile the coordinator with py-spy, into this folder"
    )
    arguments = parser.parse_args()
    for what in arguments.what:
        measure, number = MEASURES[what]
        turns: list[Figures] = []
        for _ in range(arguments.turns):
            load = os.getloadavg()[0]
            yardstick = Yardstick()
            figures = measure(arguments.tasks or number, arguments.profile)
            slower = yardstick.end()
            turns.append(_at_quiet(what, figures, slower))
            print(
                f"{what}: {_told(what, turns[-1])} (load before {load:.1f}, {slower:.2f} times as slow as quiet)",
                flush=True,
            )
        if len(turns) > 1:
            medians = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
            print(f"{what}, medians: {_told(what, medians)}", flush=True)


def _at_quiet(what: str, figures: Figures, slower: float) -> Figures:
    """Return CPU as it would be; of time on the wall and of memory nothing is taken off."""
    raw = {name for name in figures if what == "memory" or name.startswith(ON_THE_WALL)}
    return {name: value if name in raw else value / slower for name, value in figures.items()}


def _told(what: str, figures: Figures) -> str:
    scale, unit = (1.0, "MB") if what == "memory" else (1e6, "us a task")
    return f"{', '.join(f'{name} {scale * value:,.0f}' for name, value in figures.items())} {unit}"


if __name__ == "__main__":
    main()
