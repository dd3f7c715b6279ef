"""One run of a program on this machine: what it took, and what it reported."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dtf_lightning import environment
from dtf_lightning.errors import DtfError
from dtf_lightning.farm.compare.processes import run_to_end
from dtf_lightning.farm.compare.programs import Program
from dtf_lightning.farm.worker.results import collect

WALL, CPU = "time", "cpu"
"""Metrics that every run has: seconds from its start to its end, and seconds of processors, those of its children included."""
_TAIL = 2000


class RunFailed(DtfError):
    """A program did not end well, so that it has no sample."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one process gave."""

    process: str
    """Names it."""
    metrics: Mapping[str, float]


def run_once(program: Program, *, timeout: float) -> Run:
    """Run a program to its end. Raises `RunFailed` if it fails, cannot be started, or takes longer than `timeout` seconds."""
    with tempfile.TemporaryDirectory(prefix="dtf-compare-run-") as made:
        results = Path(made) / "results"
        results.mkdir()
        # A farm's other variables stay: by its mark the farm's keeper finds what an attempt has started.
        variables = environment.for_child(
            {environment.FARM_RESULTS: str(results)}, without_prefix=environment.FARM_RESULTS
        )
        with (Path(made) / "output").open("w+b") as output:
            ended = run_to_end(
                program.command, program.folder, output=output.fileno(), timeout=timeout, variables=variables
            )
            if ended.failure:
                size = output.seek(0, os.SEEK_END)
                output.seek(max(size - _TAIL, 0))
                tail = output.read().decode(errors="replace").strip()
                told = f"; its output ends:\n{tail}" if tail else " and wrote nothing"
                raise RunFailed(f"{program.named} {ended.failure}{told}")
        report = collect(results, results, (), Path(made) / "index.json")
        return Run(process=ended.process, metrics={**report.metrics, WALL: ended.wall, CPU: ended.cpu})
