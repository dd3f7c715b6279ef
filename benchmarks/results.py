"""How fast event logs become a database, and answers.

    python benchmarks/results.py [--quick]

One worker's log of a million step samples, as the event log writes them, synced into a new DuckDB file; then the sync
that finds nothing new, the usual questions, and the export to Parquet. Wall time on whatever the machine has.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from measure import table

from dtf_lightning.elastic.events import ELASTIC_EVENTS, StepsDone
from dtf_lightning.elastic.reports.report_data import gather
from dtf_lightning.elastic.reports.store import ResultsStore
from dtf_lightning.events.log import EventLog, events_path


def write_log(run_dir: Path, lines: int) -> float:
    """A worker's log; seconds that an event took to write, from the first thousand of them."""
    log = EventLog(ELASTIC_EVENTS, events_path(run_dir, "a.0.1"))
    start = time.perf_counter()
    for step in range(1, 1001):
        log.write(sample(step))
    seconds = (time.perf_counter() - start) / 1000
    log.close()
    line = sample(1).to_json()
    with events_path(run_dir, "a.0.1").open("a") as file:
        for step in range(1001, lines + 1):
            line.update(at=1.7e9 + 0.05 * step, epoch=step // 5000, step=step, loss=2.0 / (1 + step / 1000))
            file.write(json.dumps(line, separators=(",", ":")) + "\n")
    return seconds


def sample(step: int) -> StepsDone:
    return StepsDone(
        at=1.7e9 + 0.05 * step, source="a/0", generation=1, world_size=8, rank=0, epoch=step // 5000, step=step, steps=1,
        seconds=0.05, samples=256, data_wait=0.001, loss=2.0 / (1 + step / 1000), lr=1e-3, rss=10**9,
    )  # fmt: skip


def timed(call: Callable[[], object], repetitions: int) -> list[float]:
    found = []
    for _ in range(repetitions):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return found


QUESTIONS = {
    "mean loss by epoch": "SELECT epoch, avg(loss) FROM steps WHERE run = 'run' GROUP BY epoch",
    "the last 1000 steps": "SELECT step, loss FROM steps WHERE run = 'run' ORDER BY step DESC LIMIT 1000",
    "one minute": "SELECT avg(samples_per_second) FROM steps WHERE time BETWEEN '2023-11-14 23:00' AND '2023-11-14 23:01'",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="see that it works")
    quick = parser.parse_args().quick
    lines, repetitions = (10_000, 2) if quick else (1_000_000, 5)
    rows = []
    with tempfile.TemporaryDirectory() as path:
        run_dir = Path(path, "run")
        written = write_log(run_dir, lines)
        size = next(run_dir.glob("events/*")).stat().st_size
        rows.append(("write an event", f"{written:.6f}", f"{1 / written:,.0f}"))
        first = []
        for number in range(repetitions):
            database = Path(path, f"{number}.duckdb")
            with ResultsStore(database) as store:
                (seconds,) = timed(lambda store=store: store.sync(run_dir), 1)
                first.append(seconds)
        rows.append(
            (
                f"sync {lines:,} step samples ({size / 1e6:.0f} MB)",
                spread(first),
                f"{lines / statistics.median(first):,.0f}",
            )
        )
        with ResultsStore(database) as store:
            rows.append(("sync, nothing new", spread(timed(lambda: store.sync(run_dir), repetitions)), ""))
            for name, query in QUESTIONS.items():
                rows.append((name, spread(timed(lambda query=query: store.query(query).fetchall(), repetitions)), ""))
            rows.append(("all of a report's numbers", spread(timed(lambda: gather(store, "run"), repetitions)), ""))
            export = timed(lambda: store.export_parquet(Path(path, "parquet")), repetitions)
            rows.append(("Parquet export of all views", spread(export), ""))
    print(table("Results store", ("what", "seconds: median (min to max)", "rows per second"), rows))


def spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} ({min(seconds):.3f} to {max(seconds):.3f})"


if __name__ == "__main__":
    main()
