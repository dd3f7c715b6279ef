"""A farm's speed on this machine: no-op tasks a second, dispatch, failover, `dtf farm run`, and what it costs idle.

python benchmarks/farm.py [--quick] [--only NAME ...]

Everything runs at once on the same cores: etcd with fsync, coordinators with audit, archive and tokens, simulated workers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from dtf_lightning.clock import poll_until
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.testkit.local_farm import FarmShape, LocalFarm
from dtf_lightning.farm.testkit.orders import SIMULATED

TIMEOUT = 300.0
NEEDS = [{"amounts": {"cpu": 1.0}, "labels": [SIMULATED]}]


@contextmanager
def farm(**shape):
    """A farm without proxies, whose etcd writes to the disk."""
    with (
        tempfile.TemporaryDirectory(prefix="dtf-bench-") as folder,
        LocalFarm(Path(folder) / "farm", FarmShape(durable=True, proxied=False, **shape), name="bench") as started,
    ):
        yield started


def requests(number: int) -> list[dict]:
    now = time.time()
    return [{"task_id": new_task_id(now), "command": ["noop"], "needs": NEEDS} for _ in range(number)]


def done(started: LocalFarm) -> int:
    return started.store.count(started.keys.folder(Kind.DONE))


def throughput(workers: int, tasks: int, *, members: int = 1, coordinators: int = 1) -> str:
    with (
        farm(members=members, coordinators=coordinators, workers=0, crowds=1, crowd_size=workers) as started,
        started.client() as client,
    ):
        client.submit_all(requests(200))
        poll_until(lambda: done(started) == 200, TIMEOUT, "the first tasks")
        cpu = {name: cpu_seconds(part.pid) for name, part in started.coordinators.items()}
        began = time.monotonic()
        client.submit_all(requests(tasks))
        poll_until(lambda: done(started) == tasks + 200, TIMEOUT, "all tasks")
        seconds = time.monotonic() - began
        used = sum(cpu_seconds(part.pid) - cpu[name] for name, part in started.coordinators.items())
    return f"{tasks / seconds:,.0f} tasks/s; coordinators {1e6 * used / tasks:,.0f} us of CPU a task"


def dispatch(rate: int, seconds: float) -> str:
    with farm(members=1, coordinators=1, workers=0, crowds=1, crowd_size=50) as started, started.client() as client:
        client.submit_all(requests(200))
        number, began = 200, time.monotonic()
        while (now := time.monotonic() - began) < seconds:
            due = int(now * rate) + 200 - number
            if due > 0:
                client.submit_all(requests(due))
                number += due
            time.sleep(0.004)
        poll_until(lambda: done(started) >= number, TIMEOUT, "all tasks")
        sql = "SELECT epoch(started) - epoch(submitted) FROM farm.results ORDER BY submitted DESC LIMIT 4000"
        poll_until(lambda: client.query("SELECT count(*) FROM farm.results")["rows"][0][0] >= number, TIMEOUT, "rows")
        waits = sorted(1000 * row[0] for row in client.query(sql)["rows"])
    return f"p50 {waits[len(waits) // 2]:.0f} ms, p99 {waits[int(0.99 * len(waits))]:.0f} ms ({len(waits)} tasks)"


def failover(what: str) -> str:
    """The longest pause between two starts after a fault, at 100 tasks a second."""
    with farm(members=3, coordinators=3, workers=0, crowds=2, crowd_size=10) as started, started.client() as client:
        leader = poll_until(started.leader, TIMEOUT, "a leader")
        follower = next(name for name in started.coordinators if name != leader)
        strike: dict[str, Callable[[], object]] = {
            "leader killed": started.coordinators[leader].kill,
            "leader frozen": started.coordinators[leader].freeze,
            "follower killed": started.coordinators[follower].kill,
            "etcd's leader killed": lambda: started.etcd.leader().kill(),
        }
        number, began, struck = 0, time.monotonic(), 0.0
        while (now := time.monotonic() - began) < 12:
            if now > 3 and not struck:
                struck = time.time()
                strike[what]()
            due = int(now * 100) - number
            if due > 0:
                client.submit_all(requests(due))
                number += due
            time.sleep(0.01)
        poll_until(lambda: done(started) >= number, TIMEOUT, "all tasks")
        left = [name for name in started.coordinators if started.coordinators[name].runs and name != leader]
        with started.client(*left) as survivor:
            sql = f"SELECT epoch(started) FROM farm.results WHERE epoch(started) > {struck - 0.5} ORDER BY started"
            poll_until(
                lambda: survivor.query("SELECT count(*) FROM farm.results")["rows"][0][0] >= number, TIMEOUT, "rows"
            )
            starts = [row[0] for row in survivor.query(sql)["rows"]]
    return f"{max(later - earlier for earlier, later in pairwise(starts)):.2f} s"


def run_here_and_there(repeat: int) -> str:
    with farm(members=1, coordinators=1, workers=1) as started:
        variables = as_installed(started)
        there = [sys.executable, "-m", "dtf_lightning", "farm", "run", "--no-source", "--", "true"]
        help_only = [sys.executable, "-m", "dtf_lightning", "--help"]
        figures: dict[str, list[float]] = {"here": [], "there": [], "the command's own start": []}
        subprocess.run(there, env=variables, check=True, stdout=subprocess.DEVNULL)
        for _ in range(repeat):
            for name, command in (("here", ["true"]), ("there", there), ("the command's own start", help_only)):
                began = time.perf_counter()
                subprocess.run(command, env=variables, check=True, stdout=subprocess.DEVNULL)
                figures[name].append(1000 * (time.perf_counter() - began))
    return ", ".join(f"{name} {statistics.median(took):.0f} ms" for name, took in figures.items())


def as_installed(started: LocalFarm) -> dict[str, str]:
    """Return the environment of a command on this farm. An installed one has its bytecode: it is not compiled at each start."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {
        **kept,
        "PYTHONPYCACHEPREFIX": str(started.folder / "bytecode"),
        "DTF_FARM_URL": started.url,
        "DTF_FARM_TOKEN_FILE": str(started.token_file),
    }


def idle(seconds: float) -> str:
    with farm(members=1, coordinators=1, workers=1) as started:
        time.sleep(5)
        parts = {"coordinator": started.coordinators["c0"], "worker": started.workers["w0"]}
        before = {name: cpu_seconds(part.pid) for name, part in parts.items()}
        time.sleep(seconds)
        return ", ".join(
            f"{name} {100 * (cpu_seconds(part.pid) - before[name]) / seconds:.1f} % of a core, {resident(part.pid)} MB"
            for name, part in parts.items()
        )


def cpu_seconds(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few tasks: to see that it works, not to quote")
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="words in the names of what is measured")
    arguments = parser.parse_args()
    tasks = 1000 if arguments.quick else 10_000
    measures: dict[str, Callable[[], str]] = {
        "no-op, 4 workers": lambda: throughput(4, tasks),
        "no-op, 50 workers": lambda: throughput(50, tasks),
        "no-op, 200 workers": lambda: throughput(200, tasks),
        "no-op, 200 workers, three of each": lambda: throughput(200, tasks, members=3, coordinators=3),
        "dispatch at 500/s": lambda: dispatch(500, 2 if arguments.quick else 10),
        **{
            f"pause: {what}": lambda what=what: failover(what)
            for what in ("leader killed", "follower killed", "etcd's leader killed", "leader frozen")
        },
        "dtf farm run -- true": lambda: run_here_and_there(3 if arguments.quick else 15),
        "idle": lambda: idle(5 if arguments.quick else 20),
    }
    for name, measure in measures.items():
        if not arguments.only or any(word in name for word in arguments.only):
            before = os.getloadavg()[0]
            print(f"| {name} | {measure()} | load before {before:.1f} |", flush=True)


if __name__ == "__main__":
    main()
