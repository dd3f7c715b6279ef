"""The project that the demo takes to the farm: a small library with its test suite, a benchmark of it, and a plan.

It is made here, so that it needs nothing but Python: `unittest` and `time`.
"""

from __future__ import annotations

import sys
from pathlib import Path

PARTS = ("heap", "merge", "shell")
SIZES = (500, 1000, 2000)

_SORTING = '''"""Three ways to sort a list; each returns a new one."""

import heapq


def heap(numbers):
    rest = list(numbers)
    heapq.heapify(rest)
    return [heapq.heappop(rest) for _ in range(len(rest))]


def merge(numbers):
    if len(numbers) < 2:
        return list(numbers)
    middle = len(numbers) // 2
    return list(heapq.merge(merge(numbers[:middle]), merge(numbers[middle:])))


def shell(numbers):
    found, gap = list(numbers), len(numbers) // 2
    while gap:
        for start in range(gap, len(found)):
            value, place = found[start], start
            while place >= gap and found[place - gap] > value:
                found[place] = found[place - gap]
                place -= gap
            found[place] = value
        gap //= 2
    return found
'''

_TESTS = """import itertools
import random
import unittest

import sorting


class TestSort(unittest.TestCase):
    sort = staticmethod(sorting.PART)

    def test_all_orders_of_seven(self):
        for numbers in itertools.permutations(range(7)):
            self.assertEqual(self.sort(numbers), list(range(7)))

    def test_equal_numbers(self):
        self.assertEqual(self.sort([2, 1, 2, 1]), [1, 1, 2, 2])

    def test_nothing(self):
        self.assertEqual(self.sort([]), [])

    def test_many_lists(self):
        chance = random.Random(1)
        for _ in range(ROUNDS):
            numbers = [chance.randrange(100) for _ in range(200)]
            self.assertEqual(self.sort(numbers), sorted(numbers))


if __name__ == "__main__":
    unittest.main()
"""

_BENCHMARK = '''"""Measure sorts: python benchmark.py SIZE SECONDS. Medians go to the farm as metrics."""

import json
import os
import random
import statistics
import sys
import time

import sorting

size, seconds = int(sys.argv[1]), float(sys.argv[2])
print("sort", size, "numbers", flush=True)
numbers = [random.Random(1).random() for _ in range(size)]
figures = {}
for name in ("heap", "merge", "shell"):
    took, end = [], time.monotonic() + seconds / 3
    while time.monotonic() < end or not took:
        began = time.perf_counter()
        getattr(sorting, name)(numbers)
        took.append(time.perf_counter() - began)
    figures[f"{name}_ms"] = round(1000 * statistics.median(took), 3)
print(figures)
with open(os.path.join(os.environ["DTF_FARM_RESULTS"], "benchmark.jsonl"), "a") as file:
    print(json.dumps(figures), file=file)
'''

_PLAN = """name: demo
defaults:
  timeout: 2m
tasks:
  tests:
    name: tests of {{{{matrix.part}}}}
    run: {python} -m unittest -v test_{{{{matrix.part}}}}
    matrix:
      part: [{parts}]
  benchmark:
    name: benchmark of {{{{matrix.size}}}} numbers, run {{{{matrix.run}}}}
    run: {python} benchmark.py {{{{matrix.size}}}} {seconds:g}
    after: tests
    matrix:
      size: [{sizes}]
      run: [{runs}]
  the end:
    run: echo "tests and benchmarks are over"
    after: {{benchmark: any}}
"""


def write_project(folder: Path, *, seconds: float, runs: int, rounds: int) -> Path:
    """Write the project into a new folder, and return the path of its plan.

    Args:
        seconds: that each benchmark takes.
        runs: of each size.
        rounds: of the longest test of each part.
    """
    folder.mkdir(parents=True)
    (folder / "sorting.py").write_text(_SORTING)
    for part in PARTS:
        (folder / f"test_{part}.py").write_text(_TESTS.replace("PART", part).replace("ROUNDS", str(rounds)))
    (folder / "benchmark.py").write_text(_BENCHMARK)
    plan = folder / "plan.yaml"
    plan.write_text(
        _PLAN.format(
            python=sys.executable,
            parts=", ".join(PARTS),
            sizes=", ".join(map(str, SIZES)),
            runs=", ".join(map(str, range(1, runs + 1))),
            seconds=seconds,
        )
    )
    return plan
