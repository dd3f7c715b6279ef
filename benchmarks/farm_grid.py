"""How long the page's questions about tests take with a million results: 5,000 tests, 200 workers, 200 plans.

python benchmarks/farm_grid.py [--quick]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from dtf_lightning.farm.results.store import FarmResults
from dtf_lightning.farm.results.tests.course import CourseWanted, read_course
from dtf_lightning.farm.results.tests.grid import By, GridWanted, Which, read_grid
from dtf_lightning.farm.results.tests.sides import read_sides
from dtf_lightning.farm.verdicts.metrics import Metric

TESTS, WORKERS, PLAN = 5_000, 200, 5_000
ROUNDS = 9


def fill(path: Path, number: int) -> None:
    """Make results as a coordinator would have taken them in."""
    import duckdb

    FarmResults(path).close()
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            """
            INSERT INTO farm.results (task, project, plan, name, command, outcome, kind, reason, exit_code, attempt, revision,
                workers, submitted, started, ended, metrics, counts, artifacts, log_bytes, tail, problems, recorded, seen)
            SELECT printf('%012x-%04d', i * 1000, i % 1000), 'p' || (i % 5), 'plan' || (i // $plan),
                'tests/test_' || (i % $tests // 50) || '.py::test_' || (i % $tests), ['pytest', 'x'], outcome, outcome,
                'exit code 0', 0, 1, i, ['w' || (hash(i * 7) % $workers)], began, began, began + to_milliseconds((1000 + hash(i) % 100)::BIGINT),
                MAP {'cpu_seconds': random(), 'latency': 1 + random() / 50}, MAP {}, MAP {}, 17, 'tail ' || i, [], i, began
            FROM (SELECT i, TIMESTAMP '2027-01-01' + to_seconds(i) AS began,
                CASE WHEN hash(i) % 20 = 0 THEN 'failed' ELSE 'completed' END AS outcome FROM range($number) t(i))
            """,
            {"plan": PLAN, "tests": TESTS, "workers": WORKERS, "number": number},
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few results: to see that it works, not to quote")
    number = 50_000 if parser.parse_args().quick else 1_000_000
    classes = {f"w{worker}": ("cpu", "gpu", "gpu a100")[worker % 3] for worker in range(WORKERS)}
    metric = Metric.parse("latency:s")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "results.duckdb")
        fill(path, number)
        results = FarmResults(path)
        newest = number // PLAN - 1
        test = "tests/test_3.py::test_157"
        questions = {
            **{f"grid by {by.value}": lambda by=by: read_grid(results, GridWanted(by=by), classes) for by in By},
            "grid, failed last": lambda: read_grid(results, GridWanted(which=Which.FAILED), classes),
            "one test": lambda: read_course(results, CourseWanted(test=test, metric=metric), classes),
            "two plans": lambda: read_sides(results, f"plan{newest - 1}", f"plan{newest}", metric),
        }
        print(f"| question of {number:,} results | median, ms | slowest of {ROUNDS}, ms |\n|---|---|---|")
        for name, ask in questions.items():
            seconds = []
            for _ in range(ROUNDS + 1):
                began = time.perf_counter()
                ask()
                seconds.append(1000 * (time.perf_counter() - began))
            print(f"| {name} | {statistics.median(seconds[1:]):.0f} | {max(seconds[1:]):.0f} |")
        results.close()


if __name__ == "__main__":
    main()
