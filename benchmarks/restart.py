"""Restart mode against torch's own c10d rendezvous at its best settings: event to first step of all, and the imports' share.

`python benchmarks/restart.py [--repeat N] [--warm] [--lightning]`: one machine, real torchrun, three nodes of one worker,
a stock DDP script. Seconds from the event to the last worker's first step in the new world:

    event --agents, interpreter--> script starts --imports--> its code begins --group and step--> first step

The parts are those of the worker whose imports end last: all step together, so the others wait for it. A join counts
from when the joiner asks for its place: its torchrun, and its spare with `warm=true`, have been started by then.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from measure import table

from dtf_lightning.etcd.server.embedded import EmbeddedEtcd

PATIENCE = 60.0
SCRIPT = """
import os, time
started = time.monotonic()
{imports}
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
import torch._dynamo  # DDP's first forward imports it
imported = time.monotonic()
dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(4, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
step = 0
while True:
    model(torch.randn(8, 4)).mean().backward()
    optimizer.step()
    step += 1
    if step == 1:
        print("STEP", os.getpid(), dist.get_world_size(), started, imported, time.monotonic(), flush=True)
    time.sleep(0.005)
"""
C10D = "last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3,join_timeout=60"


@dataclass(frozen=True)
class FirstStep:
    """When one worker got where: monotonic seconds, the same clock for all processes."""

    started: float
    imported: float
    stepped: float


@dataclass(frozen=True)
class Times:
    """One event. Seconds."""

    total: float
    agents: float
    imports: float
    step: float

    @property
    def without_imports(self) -> float:
        return self.total - self.imports


class Node:
    """One torchrun. Puts (itself, world size, `FirstStep`) of every first step into the queue."""

    def __init__(self, arguments: list[str], script: Path, steps: queue.Queue) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1:4", "--max-restarts=100"),
                *(*arguments, str(script)),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
                "LOGLEVEL": "INFO",
                "PYTHONUNBUFFERED": "1",
            },
        )
        self.steps = steps
        self.pids: set[int] = set()
        self.asked_at: list[float] = []
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append(f"{time.monotonic():.3f} {line}")
            if re.search("Rendezvous'ing worker group|spares are ready", line):
                self.asked_at.append(time.monotonic())
            if found := re.search(r"STEP (\d+) (\d+) (\S+) (\S+) (\S+)", line):
                self.pids.add(int(found[1]))
                self.steps.put((self, int(found[2]), FirstStep(*(float(found[part]) for part in (3, 4, 5)))))

    def kill(self) -> None:
        self.process.kill()
        for pid in self.pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        self.process.wait()


def wait_for_world(steps: queue.Queue, nodes: set[Node], size: int) -> list[FirstStep]:
    """The first step of each of `nodes` in a world of this size."""
    seen: dict[Node, FirstStep] = {}
    deadline = time.monotonic() + PATIENCE
    while seen.keys() != nodes:
        node, world, first = steps.get(timeout=max(0.1, deadline - time.monotonic()))
        if world == size and node in nodes:
            seen[node] = first
    return list(seen.values())


def times(event: float, steps: list[FirstStep]) -> Times:
    last = max(steps, key=lambda step: step.imported)
    stepped = max(step.stepped for step in steps)
    return Times(stepped - event, last.started - event, last.imported - last.started, stepped - last.imported)


def measure(name: str, arguments: list[str], script: Path, settle: float) -> dict[str, Times]:
    """Join, kill -9 of a worker, kill -9 of agent and worker, SIGTERM of an agent."""
    steps: queue.Queue = queue.Queue()
    made: list[Node] = []

    def node() -> Node:
        made.append(Node(arguments, script, steps))
        return made[-1]

    results = {}
    quiet = threading.Event()
    try:
        a, b = node(), node()
        wait_for_world(steps, {a, b}, 2)
        quiet.wait(settle)
        c = node()
        joined = wait_for_world(steps, {a, b, c}, 3)
        results["join"] = times(c.asked_at[-1], joined)
        quiet.wait(settle)
        before = time.monotonic()
        os.kill(max(c.pids), signal.SIGKILL)
        results["kill -9 worker"] = times(before, wait_for_world(steps, {a, b, c}, 3))
        quiet.wait(settle)
        before = time.monotonic()
        c.kill()
        results["kill -9 agent and worker"] = times(before, wait_for_world(steps, {a, b}, 2))
        quiet.wait(settle)
        before = time.monotonic()
        b.process.terminate()
        results["SIGTERM agent"] = times(before, wait_for_world(steps, {a}, 1))
    except queue.Empty:
        print(f"{name}: no new world within {PATIENCE:g} s", file=sys.stderr)
        for number, each in enumerate(made):
            print(f"--- node {number}:\n{''.join(each.lines[-15:])}", file=sys.stderr)
    finally:
        for each in made:
            each.kill()
    return results


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def rows(found: dict[tuple[str, str], list[Times]]) -> list[Sequence[str]]:
    def median(all_times: list[Times], part: str) -> str:
        return f"{statistics.median(getattr(each, part) for each in all_times):.2f}"

    parts = ("total", "imports", "without_imports", "agents", "step")
    return [
        (event, name, *(median(all_times, part) for part in parts), str(len(all_times)))
        for (event, name), all_times in sorted(found.items())
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--warm", action="store_true", help="compare warm=true with cold starts instead of with c10d")
    parser.add_argument("--lightning", action="store_true", help="a script that imports Lightning too")
    options = parser.parse_args()
    found: dict[tuple[str, str], list[Times]] = {}
    with tempfile.TemporaryDirectory() as folder, EmbeddedEtcd() as etcd:
        script = Path(folder) / "train.py"
        script.write_text(SCRIPT.format(imports="import lightning" if options.lightning else ""))
        for number in range(options.repeat):
            ours = ["--rdzv-backend=etcd", f"--rdzv-endpoint={etcd.endpoint}"]
            conf = "--rdzv-conf=mode=restart,initial_window=0.3"
            c10d = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}", f"--rdzv-conf={C10D}"]
            variants = {"etcd restart": [*ours, f"{conf}"]}
            if options.warm:
                variants["etcd restart, warm"] = [*ours, f"{conf},warm=true,warm_delay=1"]
            else:
                variants["c10d tuned"] = [*c10d, "--monitor-interval=0.1"]
            for name, arguments in variants.items():
                run_id = f"--rdzv-id=bench-{len(name)}-{number}"
                settle = 10.0 if "warm" in name else 0.5  # the next spares import meanwhile
                for event, one in measure(name, [*arguments, run_id], script, settle).items():
                    found.setdefault((event, name), []).append(one)
                    print(f"{name}: {event}: {one}", file=sys.stderr)
    header = ("event", "rendezvous", "total", "imports", "without imports", "agents", "group and step", "n")
    print(table("Restart mode, seconds (medians)", header, rows(found)))


if __name__ == "__main__":
    main()
