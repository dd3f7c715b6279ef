"""How long a rescale keeps the survivors from training: live, beside `torchrun --rdzv-backend=c10d` restarting.

Two nodes train; a third joins, then leaves, or its worker, or the whole node, is killed with -9; again and again. Both
sides run the same model, one after the other on the same machine, and are measured the same way: by the time between
the last step of the old world and the first step of the new one on a surviving node.

    python benchmarks/rescale.py [--cycles 10] [--only live|c10d] [--model 5M]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from measure import Pause, Step, StepsFile, first_pause, milliseconds, table

from dtf_lightning.elastic.testkit.local_cluster import LocalCluster, LocalNode

SCRIPT = Path(__file__).with_name("train_mlp.py")
SURVIVORS = ("a", "b")
ACTIONS = ("leave", "kill -9 worker", "kill -9 node")
TARGETS = {"join": 250, "leave": 150, "kill -9 worker": 300, "kill -9 node": 500}
SETTLE_STEPS = 15
DEADLINE = 120.0
C10D_CONF = "join_timeout=60,last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3"
"""torch's best settings that survive an import on a busy machine (docs/benchmarks.md says which were tried)."""


class Bench:
    """One side of the comparison."""

    name = "live"

    def __init__(self, folder: Path, model: str) -> None:
        self.folder, self.model = folder, model
        self.files: dict[str, StepsFile] = {}
        self.cluster = LocalCluster(
            SCRIPT,
            ["--mode", "live", "--folder", str(folder), "--model", model],
            folder=folder / "logs",
            run_id="bench",
            nnodes="2:4",
            rdzv_conf={"initial_window": "1", "max_consecutive_failures": "1000", "failure_tolerance": "1000"},
        )

    def start(self, name: str) -> LocalNode:
        return self.cluster.start(name, variables={"BENCH_NODE": name})

    def steps(self, name: str) -> list[Step]:
        if name not in self.files:
            self.files[name] = StepsFile(self.folder / "steps" / f"{name}.txt")
        return self.files[name].read()

    def wait_for_steps(self, world_size: int, after: float) -> None:
        """Until every survivor has made some steps in this world, begun after `after`."""

        def settled() -> bool:
            return all(
                sum(s.at > after and s.world_size == world_size for s in self.steps(name)[-SETTLE_STEPS:])
                >= SETTLE_STEPS
                for name in SURVIVORS
            )

        self.cluster.wait_until(settled, f"{SETTLE_STEPS} steps of {world_size} workers", DEADLINE)

    def pauses(self, after: float, *, event: float | None = None) -> list[Pause]:
        found: list[Pause] = []

        def there() -> bool:
            pauses = [first_pause(self.steps(name)[-1000:], after, event=event) for name in SURVIVORS]
            found[:] = [pause for pause in pauses if pause is not None]
            return len(found) == len(SURVIVORS)

        self.cluster.wait_until(there, "the survivors to go on", DEADLINE)
        return found

    def act(self, action: str, node: LocalNode) -> None:
        if action == "leave":
            node.send(signal.SIGTERM)
        elif action == "kill -9 worker":
            node.kill_worker()
        else:
            node.kill()

    def world_after(self, action: str) -> int:
        return 2

    def end_third(self, node: LocalNode) -> None:
        node.wait(60)

    def run(self, cycles: int) -> dict[str, list[Pause]]:
        results: dict[str, list[Pause]] = defaultdict(list)
        with self.cluster:
            begun = time.time()
            for name in SURVIVORS:
                self.start(name)
            self.wait_for_steps(2, begun)
            for cycle in range(cycles * len(ACTIONS)):
                action = ACTIONS[cycle % len(ACTIONS)]
                before = time.time()
                third = self.start(f"c{cycle}")
                joined = self.pauses(before)
                self.wait_for_steps(3, before)
                if len(results["join"]) < 2 * cycles:
                    results["join"] += joined
                event = time.time()
                self.act(action, third)
                results[action] += self.pauses(event, event=event)
                self.wait_for_steps(self.world_after(action), event)
                self.end_third(third)
                print(f"{self.name}: {cycle + 1} of {cycles * len(ACTIONS)}", file=sys.stderr, flush=True)
        return results


class C10dBench(Bench):
    """torchelastic restarts every process on every change."""

    name = "c10d restart"

    def __init__(self, folder: Path, model: str) -> None:
        super().__init__(folder, model)
        self.cluster.variables |= {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        self.port = _free_port()

    def start(self, name: str) -> LocalNode:
        log = self.folder / "logs" / f"{name}.log"
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1:4", "--nproc-per-node=1"),
            *("--max-restarts=1000", "--monitor-interval=0.1", "--rdzv-backend=c10d", "--rdzv-id=bench"),
            *(f"--rdzv-endpoint=127.0.0.1:{self.port}", f"--rdzv-conf={C10D_CONF},is_host={int(name == 'a')}"),
            *(str(SCRIPT), "--mode", "restart", "--folder", str(self.folder), "--model", self.model),
        ]
        with log.open("ab") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.cluster.variables, "BENCH_NODE": name},
                start_new_session=True,
            )
        node = LocalNode(name, process, log)
        self.cluster.nodes[name] = node
        return node

    def world_after(self, action: str) -> int:
        return 3 if action == "kill -9 worker" else 2  # its agent restarts the worker

    def end_third(self, node: LocalNode) -> None:
        if node.process.poll() is None:
            before = time.time()
            node.kill()
            node.wait(60)
            self.wait_for_steps(2, before)


def _free_port() -> int:
    import socket

    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def report(results: dict[str, dict[str, list[Pause]]], model: str) -> str:
    rows = []
    for action in ("join", *ACTIONS):
        live, restart = results.get("live", {}).get(action, []), results.get("c10d", {}).get(action, [])
        ratio = ""
        if live and restart:
            factor = statistics.median(p.gap for p in restart) / statistics.median(p.gap for p in live)
            ratio = f"{factor:.0f}x"
        rows.append(
            [
                action,
                milliseconds([p.gap for p in live]) if live else "-",
                milliseconds([p.since_event for p in live if p.since_event is not None])
                if live and action != "join"
                else "-",
                f"<= {TARGETS[action]}",
                milliseconds([p.step_time for p in live]) if live else "-",
                milliseconds([p.gap for p in restart]) if restart else "-",
                ratio,
                f"{len(live)} / {len(restart)}",
            ]
        )
    header = [
        "event (2 <-> 3 workers)",
        "live: gap between steps, ms",
        "live: event to next step, ms",
        "aim, ms",
        "a step, ms",
        "c10d restart: gap, ms",
        "shorter by",
        "n",
    ]
    return table(f"Rescale pause seen by survivors, {model}-parameter MLP with Adam; median (min to max)", header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cycles", type=int, default=10, help="of each event")
    parser.add_argument("--only", choices=["live", "c10d"])
    parser.add_argument("--model", default="5M")
    arguments = parser.parse_args()
    results = {}
    for name, bench in (("live", Bench), ("c10d", C10dBench)):
        if arguments.only in (None, name):
            with tempfile.TemporaryDirectory(prefix="dtf-bench-") as folder:
                results[name] = bench(Path(folder), arguments.model).run(arguments.cycles)
    print(report(results, arguments.model))


if __name__ == "__main__":
    main()
