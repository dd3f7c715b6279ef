"""How fast workers were at parts of jobs: how many inputs each did, and in how many seconds."""

from __future__ import annotations

import re

from dtf_lightning.farm.orchestrate.devices import Measured
from dtf_lightning.farm.results.store import FarmResults

LATEST = 500
"""Parts that count, the latest."""
_PART = re.compile(r"\[(\d+):(\d+)\]$")


def measured(results: FarmResults, project: str, job: str) -> list[Measured]:
    """Return what is known of parts of jobs of this name that have completed. Raises `ResultsBusy`."""
    with results.reading() as reader:
        rows = reader.execute(
            f"""
            SELECT name, workers[1], epoch(ended) - epoch(started) FROM farm.results
            WHERE project = ? AND starts_with(name, ?) AND outcome = 'completed' AND len(workers) = 1
                AND started IS NOT NULL AND ended IS NOT NULL
            ORDER BY recorded DESC LIMIT {LATEST:d}
            """,
            [project, f"{job}["],
        ).fetchall()
    found: list[Measured] = []
    for name, worker, seconds in rows:
        if (part := _PART.fullmatch(name, len(job))) is not None:
            found.append(Measured(worker=worker, inputs=int(part[2]) - int(part[1]), seconds=float(seconds)))
    return found
