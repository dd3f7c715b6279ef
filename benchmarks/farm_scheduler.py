"""How fast the farm's scheduler decides, how long gangs wait, how near the bound a suite of tests ends.

python benchmarks/farm_scheduler.py [--quick]

Nothing is run: workers and time are simulated, only the scheduler is real. It uses one core and waits for nothing, so
that its seconds are those of the processor: other work on the machine counts less. What the record would tell is told,
too: every end, and every placement once more.
"""

from __future__ import annotations

import argparse
import gc
import heapq
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from dtf_lightning.farm.rules.needs import Need
from dtf_lightning.farm.rules.scheduling.door import Placement, ReadyTask, WorkerOffer
from dtf_lightning.farm.rules.scheduling.scheduler import ShapeScheduler
from dtf_lightning.farm.rules.scheduling.settings import SchedulerSettings

NEVER = SchedulerSettings(reserve_after=float("inf"), starve_after=float("inf"))

WINDOW = 200
"""Ends of tasks that are timed together; others' work on the machine disturbs some windows more than others."""

KINDS = [
    WorkerOffer(worker="", devices={"cpu": 16, "memory": 64}, labels=("linux",)),
    WorkerOffer(worker="", devices={"cpu": 8, "memory": 32}, labels=("linux", "py312"), cost=0.6),
    WorkerOffer(worker="", devices={"gpu": 4, "cpu": 32, "memory": 256}, labels=("gpu", "h100", "linux"), cost=8.0),
    WorkerOffer(worker="", devices={"gpu": 1, "cpu": 8, "memory": 64}, labels=("gpu", "linux"), cost=3.0),
    WorkerOffer(worker="", devices={"board": 2, "cpu": 4, "memory": 16}, labels=("bench", "linux")),
]


def offer_like(kind: WorkerOffer, number: int) -> WorkerOffer:
    return WorkerOffer(worker=f"w{number}", devices=kind.devices, labels=kind.labels, cost=kind.cost)


def needs_of(shape: int) -> tuple[Need, ...]:
    """Six kinds of tasks, each in several sizes."""
    linux = ("linux",)
    match shape % 6:
        case 0 | 1 | 2:
            return (Need(amounts={"cpu": 1 + shape % 4, "memory": 1 + shape % 5 + shape // 60}, labels=linux),)
        case 3:
            gpu = Need(amounts={"gpu": 1, "cpu": 2, "memory": 8 + shape % 3 + shape // 60}, labels=("gpu",))
            return gpu, Need(amounts={"cpu": 16, "memory": 32}, labels=linux)
        case 4:
            return (Need(amounts={"board": 1, "cpu": 1, "memory": 1 + shape % 4 + shape // 60}, labels=("bench",)),)
    return (Need(amounts={"cpu": 8, "memory": 8 + shape % 8 + shape // 60}, labels=linux),)


# --- decisions ---------------------------------------------------------------------------------------------------------


def make_tasks(tasks: int, shapes: int) -> list[ReadyTask]:
    chance = random.Random(0)
    kinds = [needs_of(shape) for shape in range(shapes)]
    return [
        ReadyTask(
            task=f"t{number}",
            project=f"p{chance.randrange(10)}",
            needs=kinds[chance.randrange(shapes)],
            priority=chance.randrange(4),
            submitted=number * 1e-3,
            sequence=number,
            expected=chance.choice([None, 1.0, 5.0, 20.0, 60.0]),
        )
        for number in range(tasks)
    ]


def memory_of_a_task(waiting: list[ReadyTask]) -> float:
    """Bytes that the scheduler keeps for each, beside the strings and needs that it was given."""
    scheduler = ShapeScheduler()
    tracemalloc.start()
    for task in waiting:
        scheduler.task_ready(task)
    bytes_now, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return bytes_now / len(waiting)


def decisions(tasks: int, workers: int, shapes: int, windows: int) -> str:
    waiting = make_tasks(tasks, shapes)
    scheduler = ShapeScheduler()
    gc.collect()
    begin = time.process_time()
    for number in range(workers):
        scheduler.worker_offers(offer_like(KINDS[number % len(KINDS)], number))
    for task in waiting:
        scheduler.task_ready(task)
    built = time.process_time()
    ready = {task.task: task for task in waiting}
    placements = scheduler.decide(tasks, 200.0)
    filled = time.process_time()
    running = [(placement, ready[placement.task]) for placement in placements]
    now, cells = 200.0, []
    for batch in (1, 50):
        rates = []
        for _ in range(windows):
            now, rate = steady(scheduler, running, ready, batch, now)
            rates.append(rate)
        cells.append(f"{statistics.median(rates):,.0f} ({max(rates):,.0f})")
    return (
        f"| {tasks:,} | {workers:,} | {shapes} | {cells[0]} | {cells[1]} | {filled - begin:.2f} s "
        f"({built - begin:.2f} + {len(placements):,} first decisions) | {memory_of_a_task(waiting[:20_000]):,.0f} |"
    )


def steady(
    scheduler: ShapeScheduler,
    running: list[tuple[Placement, ReadyTask]],
    ready: dict[str, ReadyTask],
    batch: int,
    now: float,
) -> tuple[float, float]:
    """(time after it, decisions a second) while `WINDOW` tasks end in no order, `batch` before each decision."""
    chance = random.Random(now)
    decided = 0
    begin = time.process_time()
    for _ in range(WINDOW // batch):
        now += 0.0005 * batch
        for _ in range(batch):
            index = chance.randrange(len(running))
            running[index], running[-1] = running[-1], running[index]
            scheduler.task_gone(running.pop()[0].task)
        for placement in scheduler.decide(1000, now):
            task = ready[placement.task]
            scheduler.task_placed(task, placement.workers, placement.alternative)
            running.append((placement, task))
            decided += 1
    return now, decided / (time.process_time() - begin)


# --- a farm in simulated time ------------------------------------------------------------------------------------------


@dataclass
class Simulated:
    """When each task began and ended, seconds."""

    began: dict[str, float]
    ended: dict[str, float]
    wall: float


def simulate(
    tasks: Iterable[tuple[ReadyTask, float]], offers: Iterable[WorkerOffer], settings: SchedulerSettings | None = None
) -> Simulated:
    """Tasks arrive when they are submitted and run as long as stands beside them."""
    scheduler = ShapeScheduler(settings=settings)
    for offer in offers:
        scheduler.worker_offers(offer)
    lengths = {task.task: length for task, length in tasks}
    ready = {task.task: task for task, _ in tasks}
    events = [(task.submitted, 0, task.task) for task in ready.values()]
    heapq.heapify(events)
    result = Simulated({}, {}, 0.0)
    begin = time.process_time()
    while events:
        now = events[0][0]
        while events and events[0][0] <= now:
            _, kind, name = heapq.heappop(events)
            if kind == 0:
                scheduler.task_ready(ready[name])
            elif kind == 1:
                scheduler.task_gone(name)
                result.ended[name] = now
        for placement in scheduler.decide(1 << 30, now):
            name = placement.task
            scheduler.task_placed(ready[name], placement.workers, placement.alternative)
            result.began[name] = now
            heapq.heappush(events, (now + lengths[name], 1, name))
        if scheduler.num_waiting and not any(kind == 2 for _, kind, _ in events[:2]):
            heapq.heappush(events, (now + 1.0, 2, ""))
    result.wall = time.process_time() - begin
    return result


def suite(expected: Callable[[random.Random, float], float | None]) -> str:
    """5,000 tests of unlike length on 200 cpus; the bound is the mean load, or the longest test."""
    chance = random.Random(1)
    lengths = [min(600.0, chance.lognormvariate(1.0, 1.6)) for _ in range(5000)]
    guess = random.Random(2)
    one = (Need(amounts={"cpu": 1, "memory": 1}),)
    tasks = [
        (ReadyTask(task=f"t{number}", plan="p", needs=one, sequence=number, expected=expected(guess, length)), length)
        for number, length in enumerate(lengths)
    ]
    offers = [WorkerOffer(worker=f"w{number}", devices={"cpu": 4, "memory": 16}) for number in range(50)]
    took = max(simulate(tasks, offers).ended.values())
    bound = max(sum(lengths) / 200, *lengths)
    return f"{took:.0f} s | {bound:.0f} s | {100 * (took / bound - 1):.1f} %"


def from_history(chance: random.Random, length: float) -> float | None:
    """Known to a lognormal sigma of 0.3; one in ten is unknown."""
    return None if chance.random() < 0.1 else length * chance.lognormvariate(0.0, 0.3)


def stream(minutes: float) -> list[tuple[ReadyTask, float]]:
    """Small tasks at 85 % of 200 cpus that never cease, tasks of a whole worker, gangs of eight whole workers."""
    chance = random.Random(2)
    small, whole = (Need(amounts={"cpu": 1, "memory": 1}),), (Need(amounts={"cpu": 4, "memory": 4}),)
    tasks, now, until = [], 0.0, minutes * 60
    while now < until:
        now += chance.expovariate(200 * 0.85 / 5.0)
        length = chance.expovariate(1 / 5.0)
        number = len(tasks)
        task = ReadyTask(
            task=f"small{number}",
            project=f"p{number % 5}",
            needs=small,
            submitted=now,
            sequence=number,
            expected=length,
        )
        tasks.append((task, length))
    for number in range(int(until / 40)):
        at = 30.0 * number + 60
        task = ReadyTask(task=f"whole{number}", project="whole", needs=whole, submitted=at, expected=60.0)
        tasks.append((task, 60.0))
    for number in range(int(until / 170)):
        at = 150.0 * number + 60
        task = ReadyTask(task=f"gang{number}", project="gang", needs=whole, submitted=at, expected=60.0, gang=8)
        tasks.append((task, 60.0))
    return tasks


def waits(minutes: float, settings: SchedulerSettings | None) -> str:
    tasks = stream(minutes)
    offers = [WorkerOffer(worker=f"w{number}", devices={"cpu": 4, "memory": 16}) for number in range(50)]
    ran = simulate(tasks, offers, settings)
    cells = []
    for kind in ("small", "whole", "gang"):
        waited = sorted(ran.began[t.task] - t.submitted for t, _ in tasks if t.task.startswith(kind))
        cells.append(f"{statistics.median(waited):.1f} / {waited[-1]:.0f} s")
    return " | ".join([*cells, f"{1e6 * ran.wall / len(tasks):.0f} us"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small farms: to see that it works, not to quote")
    quick = parser.parse_args().quick
    sizes = [(20_000, 200, 12), (20_000, 200, 120)]
    if not quick:
        sizes += [(100_000, 2_000, 12), (100_000, 2_000, 120)]
    print(
        "| pending | workers | shapes | decisions/s, one at a time (best window) | in batches of 50 | cold start | bytes a pending task |"
        "\n|---|---|---|---|---|---|---|"
    )
    for size in sizes:
        print(decisions(*size, 8 if quick else 40), flush=True)
    print("\n| 5,000 tests on 200 cpus, durations | they end after | bound | above it |\n|---|---|---|---|")
    print(f"| known | {suite(lambda _, length: length)} |")
    print(f"| known to a sigma of 0.3, one in ten unknown | {suite(from_history)} |")
    print(f"| unknown | {suite(lambda *_: None)} |")
    minutes = 5 if quick else 20
    print(
        f"\n| {minutes} minutes, median / longest wait | small | whole worker | gang of 8 | processor's time a task |\n|---|---|---|---|---|"
    )
    print(f"| with reservations | {waits(minutes, None)} |")
    print(f"| without | {waits(minutes, NEVER)} |")


if __name__ == "__main__":
    main()
