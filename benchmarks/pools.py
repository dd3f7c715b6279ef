"""A week of a lab's load: how long tasks wait and what that costs with a pool that scales, beside fixed ones. Simulated time, seconds to run.

python benchmarks/pools.py [--plot docs/pools.svg]
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path
from statistics import median

from measure import table

from dtf_lightning.farm.rules.scaling.observation import PoolLimits
from dtf_lightning.farm.testkit.pools import DAY, PlayedPool, PlayedTask, PoolSimulation

HOUR = 3600.0
WEEK = 7 * DAY
START_DELAY = 90.0
"""Seconds for a machine to come."""
MAXIMUM = 16


def week(seed: int = 1) -> list[PlayedTask]:
    """Suites of people by day, single tasks at all hours, and a long run every night. What is expected is a median: it is wrong."""
    dice = random.Random(seed)
    tasks = []

    def submit(at: float, middle: float) -> None:
        seconds = min(dice.lognormvariate(math.log(middle), 0.6), 3000.0)
        tasks.append(PlayedTask(at=at, seconds=seconds, expected=middle))

    for day in range(7):
        working = day < 5
        for hour in range(24):
            suites = (3.0 if 9 <= hour < 18 else 0.3) if working else 0.15
            begin = day * DAY + hour * HOUR
            at = begin + dice.expovariate(suites / HOUR)
            while at < begin + HOUR:
                for _ in range(dice.choice((8, 20, 40))):
                    submit(at, 60.0)
                at += dice.expovariate(suites / HOUR)
            at = begin + dice.expovariate(4.0 / HOUR)
            while at < begin + HOUR:
                submit(at, 240.0)
                at += dice.expovariate(4.0 / HOUR)
        for _ in range(60 if working else 20):
            submit(day * DAY + 1.0 * HOUR, 900.0)
    return sorted(tasks, key=lambda task: task.at)


def scaled(minimum: int) -> PoolLimits:
    return PoolLimits(minimum=minimum, maximum=MAXIMUM, serve_within=300.0, patience=10.0, idle=300.0, cool_down=120.0)


def fixed(number: int) -> PoolLimits:
    return PoolLimits(minimum=number, maximum=number)


def by_the_clock(at: float) -> PoolLimits:
    """As `schedule: ["mon-fri 08:30-18:00 min=4"]`."""
    working = at // DAY < 5 and 8.5 * HOUR <= at % DAY < 18 * HOUR
    return scaled(4 if working else 0)


def play(tasks: list[PlayedTask], limits) -> PlayedPool:
    return PoolSimulation(tasks, limits, start_delay=START_DELAY).run(WEEK)


def row(name: str, told: PlayedPool) -> list[str]:
    waits = sorted(told.waits)
    return [
        name,
        f"{median(waits):.0f}",
        f"{waits[int(0.95 * len(waits))]:.0f}",
        f"{waits[-1] / 60:.0f}",
        f"{told.worker_seconds / HOUR:.0f}",
        f"{100 * told.busy_seconds / told.worker_seconds:.0f} %",
        str(max(number for _, number, _ in told.series)),
    ]


WIDTH, HEIGHT, LEFT = 760, 130, 50


def plot(path: Path, drawn: dict[str, tuple[str, PlayedPool]]) -> None:
    """Draw workers and tasks that wait, by the hour. `drawn`: name -> (colour, what came of it)."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH + LEFT + 10} {2 * HEIGHT + 90}">',
        '<g font-family="sans-serif" font-size="12" fill="#666">',
    ]
    for place, (what, column) in enumerate((("workers", 1), ("tasks that wait", 2))):
        top = 30 + place * (HEIGHT + 35)
        most = max(look[column] for _, told in drawn.values() for look in told.series)
        parts.append(f'<text x="{LEFT}" y="{top - 6}">{what}, 0 to {most}</text>')
        for day in range(8):
            x = LEFT + WIDTH * day / 7
            parts.append(f'<path d="M{x:.0f} {top}V{top + HEIGHT}" stroke="#ddd"/>')
        for colour, told in drawn.values():
            points = " ".join(
                f"{LEFT + WIDTH * at / WEEK:.1f},{top + HEIGHT * (1 - value / most):.1f}"
                for at, value in hourly(told, column)
            )
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.2"/>')
    days = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
    bottom = 2 * HEIGHT + 80
    parts += [
        f'<text x="{LEFT + WIDTH * (day + 0.4) / 7:.0f}" y="{bottom}">{name}</text>' for day, name in enumerate(days)
    ]
    for place, (name, (colour, _)) in enumerate(drawn.items()):
        parts.append(f'<text x="{LEFT + 320 + 160 * place}" y="24" fill="{colour}">{name}</text>')
    path.write_text("\n".join([*parts, "</g></svg>", ""]), encoding="utf-8")


def hourly(told: PlayedPool, column: int) -> list[tuple[float, int]]:
    """Return (time, the most in the hour from then on)."""
    hours: dict[float, int] = {}
    for look in told.series:
        hour = look[0] // HOUR * HOUR
        hours[hour] = max(hours.get(hour, 0), look[column])
    return list(hours.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="where to draw it, as SVG")
    arguments = parser.parse_args()
    tasks = week()
    pools = {f"fixed, {number}": play(tasks, lambda _, number=number: fixed(number)) for number in (4, 6, 8, 16)}
    pools["scaled, 0 to 16"] = play(tasks, lambda _: scaled(0))
    pools["scaled, 2 to 16"] = play(tasks, lambda _: scaled(2))
    pools["scaled, 0 to 16, 4 by day"] = play(tasks, by_the_clock)
    work = sum(task.seconds for task in tasks) / HOUR
    header = [
        "pool",
        "wait, median, s",
        "wait, p95, s",
        "wait, longest, min",
        "worker-hours",
        "of them busy",
        "most workers",
    ]
    rows = [row(name, told) for name, told in pools.items()]
    print(table(f"A week of {len(tasks):,} tasks, {work:.0f} worker-hours", header, rows))
    if arguments.plot:
        plot(
            arguments.plot,
            {name: (colour, pools[name]) for name, colour in (("scaled, 0 to 16", "#1f6feb"), ("fixed, 4", "#999"))},
        )


if __name__ == "__main__":
    main()
