"""One pool: what borrowing a device from an elastic training costs the test, the training, and the pool.

A training (`train_mlp.py`, live mode) holds all workers of a farm on this machine. Again and again a test is submitted, gets one of
its devices, sleeps there for a while, and the training takes the device back. Measured are the times that the processes themselves
write: each step's end, and the test's first and last instruction.

    python benchmarks/pool.py [--borrowings 3] [--seconds 5]

The aims are for tests of 30 s or more on one pinned core a device (`--seconds 30`); shorter ones are a scaled-down run, and the table
says so. Everything that it starts ends with it, by Ctrl-C and SIGTERM too.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from measure import Step, StepsFile, milliseconds, table

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.observe.ledger import audit
from dtf_lightning.farm.testkit.local_farm import FarmShape, LocalFarm

SCRIPT = Path(__file__).with_name("train_mlp.py")
SETTLE_STEPS = 10
DEADLINE = 300.0
"""Seconds for anything that is waited for, on a busy machine."""
LONG = 30.0
"""Seconds of a test from which on the aim for lost device-seconds is meant."""


@dataclass(frozen=True)
class Borrowed:
    """One borrowing. Seconds since the epoch."""

    submitted: float
    """Just before the request."""
    accepted: float
    """The request was answered."""
    asked: float
    """The leader wrote that the part shall leave."""
    last_step: float
    """The part's last step's end."""
    left: float
    """The leader's record has the device free."""
    began: float
    """The test's first instruction."""
    ended: float
    """Its last."""
    back: float
    """The first step's end of the process that came for the part."""
    pauses: tuple[float, ...]
    """Seconds for which each survivor stood still at the leave."""
    pauses_back: tuple[float, ...]
    """The same at the return."""


class Training:
    """The training's processes, by the files of steps that they write."""

    def __init__(self, folder: Path, size: int) -> None:
        self.size = size
        self._folder = folder
        self._files: dict[str, StepsFile] = {}

    def processes(self) -> list[list[Step]]:
        """The steps of each process so far."""
        for path in self._folder.glob("*.txt"):
            self._files.setdefault(path.name, StepsFile(path))
        return [steps for file in self._files.values() if (steps := file.read())]

    def wait_until_whole(self, after: float) -> None:
        """Until as many processes as there are devices have made some steps together, begun after `after`."""

        def is_whole() -> bool:
            recent = [steps[-SETTLE_STEPS:] for steps in self.processes()]
            whole = [all(step.at > after and step.world_size == self.size for step in steps) for steps in recent]
            return (
                sum(is_there and len(steps) == SETTLE_STEPS for is_there, steps in zip(whole, recent, strict=True))
                == self.size
            )

        poll_until(is_whole, DEADLINE, f"{SETTLE_STEPS} steps of {self.size} workers")


def pauses(processes: Sequence[Sequence[Step]], begin: float, end: float, worlds: tuple[int, int]) -> tuple[float, ...]:
    """What each process stood still, beyond a usual step, when the world changed like this in this time."""
    found = []
    for steps in processes:
        for before, first in pairwise(steps):
            if begin < first.at <= end and (before.world_size, first.world_size) == worlds:
                found.append(max(0.0, first.at - before.at - usual(steps, first.world_size)))
    return tuple(found)


def usual(steps: Sequence[Step], world_size: int) -> float:
    """A process's median step in worlds of this size, in seconds; 0 if it has made fewer than two there."""
    took = [b.at - a.at for a, b in pairwise(steps) if a.world_size == b.world_size == world_size]
    return statistics.median(took) if took else 0.0


def trained(processes: Sequence[Sequence[Step]], begin: float, end: float) -> float:
    """Device-seconds of training in this time: all of each process's but what it stood still where the world changed."""
    total = 0.0
    for steps in processes:
        for before, after in pairwise(steps):
            if begin < after.at <= end:
                took = after.at - max(before.at, begin)
                total += took if before.world_size == after.world_size else min(took, usual(steps, after.world_size))
    return total


def borrow(farm: LocalFarm, training: str, world: Training, seconds: float) -> Borrowed:
    """Have a test borrow a device for so long, and wait until the training has it back."""
    before = {steps[0].pid for steps in world.processes()}
    with farm.client() as client:
        submitted = time.time()
        test = client.submit(["sh", "-c", f"date +%s.%N; sleep {seconds:g}; date +%s.%N"])
        accepted = time.time()
        info = client.wait(test, DEADLINE)
        if info.status != "completed":
            raise SystemExit(f"the test is {info.status}: {info.reason}")
        began, ended = (float(line) for line in b"".join(client.logs(test)).split())
        world.wait_until_whole(ended)
        told = next(
            one for one in client.task(training).raw["metadata"]["training"]["borrowings"] if one["wanted_by"] == test
        )
    processes, now = world.processes(), time.time()
    (new,) = (steps for steps in processes if steps[0].pid not in before)
    (gone,) = (
        steps for steps in processes if steps[0].pid in before and steps[-1].at < began and steps[-1].at > submitted - 5
    )
    return Borrowed(
        submitted=submitted,
        accepted=accepted,
        asked=seconds_of(told["asked"]),
        last_step=gone[-1].at,
        left=seconds_of(told["left"]),
        began=began,
        ended=ended,
        back=new[0].at,
        pauses=pauses(processes, submitted, now, (world.size, world.size - 1)),
        pauses_back=pauses(processes, submitted, now, (world.size - 1, world.size)),
    )


def seconds_of(moment: str) -> float:
    return datetime.fromisoformat(moment).timestamp()


def percentile(values: Sequence[float], fraction: float) -> float:
    return sorted(values)[min(len(values) - 1, int(fraction * len(values)))]


def run(arguments: argparse.Namespace, folder: Path) -> str:
    shape = FarmShape(
        members=1, coordinators=1, workers=arguments.workers, worker_cpus=1.0, proxied=False, durable=True
    )
    load = os.getloadavg()[0]
    with LocalFarm(folder / "farm", shape, name="pool") as farm, farm.client() as client:
        run_folder, stop = folder / "training", folder / "stop"
        training = client.train(
            str(SCRIPT),
            [
                "--mode=live", f"--folder={run_folder}", f"--model={arguments.model}", "--ledger", f"--stop-file={stop}",
                f"--dataset-size={arguments.dataset_size}", f"--batch-size={arguments.batch_size}",
            ],
            endpoint=farm.etcd.endpoint,
            workers=(1, arguments.workers),
            python=sys.executable,
        )  # fmt: skip
        world = Training(run_folder / "steps", arguments.workers)
        world.wait_until_whole(0.0)
        begin, found = time.time(), []
        for number in range(arguments.borrowings):
            time.sleep(arguments.rest)
            found.append(borrow(farm, training, world, arguments.seconds))
            print(f"{number + 1} of {arguments.borrowings}: {describe(found[-1])}", file=sys.stderr, flush=True)
        time.sleep(arguments.rest)
        end = time.time()
        processes = world.processes()
        stop.touch()
        info = client.wait(training, DEADLINE)
        if info.status != "completed":
            raise SystemExit(f"the training is {info.status}: {info.reason}")
        loads = f"{load:.1f} before, {os.getloadavg()[0]:.1f} at the end"
    return report(arguments, found, processes, (begin, end), loads, audited(run_folder, arguments.dataset_size))


def audited(folder: Path, dataset_size: int) -> str:
    account = audit(sorted(folder.glob("**/ledger/*.jsonl")))
    lost = sum(len(epoch.missing(dataset_size)) for epoch in account.epochs.values())
    repeated = sum(len(epoch.repeated()) for epoch in account.epochs.values())
    return (
        f"{lost} lost, {repeated} repeated, {account.steps_lost} steps lost ({len(account.epochs)} epochs of {dataset_size:,} "
        f"samples, {account.committed_steps:,} steps, {len(account.resume_steps)} generations)"
    )


def describe(one: Borrowed) -> str:
    """Where the time of one borrowing went."""
    parts = {
        "accepted": one.accepted - one.submitted,
        "asked": one.asked - one.submitted,
        "its last step": one.last_step - one.submitted,
        "left": one.left - one.submitted,
        "first instruction": one.began - one.submitted,
        "back after": one.back - one.ended,
    }
    return ", ".join(f"{name} {1000 * seconds:.0f} ms" for name, seconds in parts.items())


def report(
    arguments: argparse.Namespace,
    found: Sequence[Borrowed],
    processes: Sequence[Sequence[Step]],
    window: tuple[float, float],
    loads: str,
    samples: str,
) -> str:
    begin, end = window
    number, all_seconds = len(found), arguments.workers * (end - begin)
    tested = sum(one.ended - one.began for one in found)
    lost = all_seconds - tested - trained(processes, begin, end)
    steps = [usual(steps, arguments.workers) for steps in processes if usual(steps, arguments.workers)]

    def of(seconds: Callable[[Borrowed], float]) -> str:
        values = [seconds(one) for one in found]
        return f"p50 {1000 * statistics.median(values):.0f} ms, p95 {1000 * percentile(values, 0.95):.0f} ms, most {1000 * max(values):.0f} ms"

    scaled = "" if arguments.seconds >= LONG else f"scaled down: {arguments.seconds:g} s each; "
    rows = [
        ["from a test's submission to its first instruction", of(lambda one: one.began - one.submitted), "p95 <= 1,500 ms"],
        ["- until the part was asked to leave", of(lambda one: one.asked - one.submitted), ""],
        ["- from there to its last step", of(lambda one: one.last_step - one.asked), ""],
        ["- from there to its device's being free", of(lambda one: one.left - one.last_step), ""],
        ["- from there to the first instruction", of(lambda one: one.began - one.left), ""],
        ["survivors' pause at the leave beyond a step, ms", milliseconds([p for one in found for p in one.pauses] or [0.0]), "150"],
        ["survivors' pause at the return, ms", milliseconds([p for one in found for p in one.pauses_back] or [0.0]), "250"],
        ["from the test's end to the returned part's first step", of(lambda one: one.back - one.ended), ""],
        ["samples, by the ledger", samples, "0 lost, 0 repeated"],
        [
            "device-seconds that neither train nor test",
            f"{scaled}{lost:.1f} of {all_seconds:.0f} s ({100 * lost / all_seconds:.1f} %), {lost / max(1, number):.1f} s a borrowing",
            f"<= 5 % with borrowings of >= {LONG:g} s",
        ],
        ["a step of the whole training", f"{1000 * statistics.median(steps):.0f} ms", "<= 200 ms"],
    ]  # fmt: skip
    title = (
        f"{number} borrowings of {arguments.seconds:g} s from a training of {arguments.workers} workers on {os.cpu_count()} cores "
        f"({arguments.model} MLP), load {loads}"
    )
    return table(title, ["what", "figure", "aim"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--borrowings", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="that each test has its device")
    parser.add_argument("--rest", type=float, default=3.0, help="seconds of undisturbed training before each borrowing")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--model", default="5M")
    parser.add_argument("--batch-size", type=int, default=2, help="per worker")
    parser.add_argument("--dataset-size", type=int, default=2000, help="of an epoch, in samples")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="dtf-bench-") as folder:
        print(run(arguments, Path(folder)))


if __name__ == "__main__":
    main()
