"""`read_course`: one test over time: its latest runs, how many there were where, its failures by their texts, and one metric.

Rules that this file guards:
- Counts are of all runs; only the list of runs, the texts of failures and the series are of the latest ones, and say so.
- What a metric tells are the rules of `verdicts.history`: its noise, the smallest change that could be seen, steps and drift. A
  single point beyond the noise is never told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.record.asked import unpack
from dtf_lightning.farm.results.rows import stored
from dtf_lightning.farm.results.store import FarmResults
from dtf_lightning.farm.results.tests.runs import CODE, ENDS, IS_OF, IS_RUN, RERUN, version_of
from dtf_lightning.farm.verdicts.history.review import review
from dtf_lightning.farm.verdicts.metrics import Metric
from dtf_lightning.farm.verdicts.series import Series, percent
from dtf_lightning.farm.verdicts.units import unit_of

RUNS = 500
"""The latest, which are listed, and whose values are the series."""
TEXTS = 20
"""Kinds of failures that are shown."""
DURATION = "duration"
"""The metric that every run has: seconds from its start to its end."""


@dataclass(frozen=True, kw_only=True)
class CourseWanted:
    """What is asked for; "" asks nothing."""

    test: str
    project: str = ""
    worker: str = ""
    device: str | None = None
    """A device class; "" is that of workers that the farm knows no more; `None` asks nothing."""
    branch: str = ""
    metric: Metric


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run. Times are in UTC."""

    task: str
    end: str
    reason: str
    worker: str
    device: str
    plan: str
    project: str
    started: Any
    ended: Any
    value: float | None
    """Of the metric."""
    tries: int
    tail: str
    version: str
    branch: str


@dataclass(frozen=True, kw_only=True)
class Count:
    """Runs on one worker, or of one device class."""

    runs: int = 0
    failed: int = 0
    lost: int = 0
    tried: int = 0
    """Passed only after an attempt that had failed: a flake, or its worker."""

    def __add__(self, other: Count) -> Count:
        return Count(
            runs=self.runs + other.runs,
            failed=self.failed + other.failed,
            lost=self.lost + other.lost,
            tried=self.tried + other.tried,
        )


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Failures of one text among the latest runs."""

    reason: str
    number: int
    newest: Run


@dataclass(frozen=True, kw_only=True)
class Step:
    """A change of the metric that stayed. `run`: the first one of the new level, by its place in `Told.values`."""

    run: int
    percent: float
    worse: bool


@dataclass(frozen=True, kw_only=True)
class Told:
    """What the metric's series tells. Values are in `unit`, in the order in which the runs ended."""

    unit: str
    values: tuple[float, ...] = ()
    tasks: tuple[str, ...] = ()
    center: float | None = None
    low: float | None = None
    high: float | None = None
    """Of the band in which a value of the present level is noise."""
    visible: float | None = None
    """The smallest change that could be seen, as a fraction."""
    steps: tuple[Step, ...] = ()
    drift: str = ""
    problem: str = ""
    """Why nothing can be told; "": it can."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """All of it. `by_device`: device class -> count; `runs`: the latest first."""

    count: Count
    by_device: dict[str, Count]
    by_worker: dict[str, Count]
    runs: tuple[Run, ...]
    failures: tuple[Failure, ...]
    reruns: tuple[Run, ...]
    """What `dtf farm blame` has run again of it, the latest first."""
    metrics: tuple[str, ...]
    told: Told


_COUNTS = f"""
    SELECT coalesce(workers[1], ''), count(*), count(*) FILTER (end_ IN (1, 2)), count(*) FILTER (end_ = 3),
        count(*) FILTER (end_ = 0 AND attempt > 1)
    FROM (SELECT *, {CODE} AS end_ FROM farm.results) WHERE {IS_RUN} AND {IS_OF} AND ($project = '' OR project = $project)
    GROUP BY 1
"""
_RUNS = f"""
    SELECT task, {CODE}, reason, coalesce(workers[1], ''), plan, project, started, ended, metrics, attempt, tail, asked
    FROM farm.results WHERE {IS_RUN} AND {IS_OF} AND ($project = '' OR project = $project)
    AND ($all OR list_contains($workers, coalesce(workers[1], '')) <> $without) ORDER BY recorded DESC LIMIT {RUNS}
"""


_RERUNS = f"""
    SELECT task, {CODE}, reason, coalesce(workers[1], ''), plan, project, started, ended, metrics, attempt, tail, asked
    FROM farm.results WHERE {IS_RUN} AND name = $rerun AND ($project = '' OR project = $project)
    ORDER BY recorded DESC LIMIT {TEXTS}
"""


def read_course(results: FarmResults, wanted: CourseWanted, classes: Mapping[str, str]) -> Course:
    """Read it. Raises `ResultsBusy`. Without any run all of it is empty.

    Args:
        classes: worker -> its device class, of the workers that the farm knows; others are together under "".
    """
    asked = {"test": stored(wanted.test), "project": stored(wanted.project)}
    workers, without = _workers(wanted, classes)
    everywhere = not wanted.worker and wanted.device is None
    of_workers = {"workers": list(map(stored, workers)), "without": without, "all": everywhere}
    with results.reading() as reader:
        counts = reader.execute(_COUNTS, asked).fetchall()
        rows = reader.execute(_RUNS, asked | of_workers).fetchall()
        again = {"rerun": RERUN + asked["test"], "project": asked["project"]}
        reruns = reader.execute(_RERUNS, again).fetchall()
    by_worker = {
        worker: Count(runs=runs, failed=failed, lost=lost, tried=tried) for worker, runs, failed, lost, tried in counts
    }
    by_device: dict[str, Count] = {}
    for worker, count in by_worker.items():
        device = classes.get(worker, "")
        by_device[device] = by_device.get(device, Count()) + count
    runs = [
        run
        for row in rows
        if (run := _run(row, classes, wanted.metric.name)).branch == wanted.branch or not wanted.branch
    ]
    return Course(
        count=sum(by_worker.values(), Count()),
        by_device=dict(sorted(by_device.items())),
        by_worker=dict(sorted(by_worker.items())),
        runs=tuple(runs),
        failures=tuple(failures_of(runs)),
        reruns=tuple(_run(row, classes, wanted.metric.name) for row in reruns),
        metrics=tuple(sorted({name for row in rows for name in row[8]})),
        told=tell([run for run in reversed(runs) if run.end == ENDS[0]], wanted.metric),
    )


def _workers(wanted: CourseWanted, classes: Mapping[str, str]) -> tuple[list[str], bool]:
    """The workers whose runs are asked for; or with `True` those whose are not."""
    if wanted.worker:
        return [wanted.worker], False
    if wanted.device == "":
        return list(classes), True
    return [worker for worker, device in classes.items() if device == wanted.device], False


def _run(row: Sequence[Any], classes: Mapping[str, str], metric: str) -> Run:
    task, end, reason, worker, plan, project, started, ended, metrics, attempt, tail, asked = row
    value = metrics.get(metric)
    if value is None and metric == DURATION and started and ended:
        value = (ended - started).total_seconds()
    version = version_of(unpack(asked or ""))
    return Run(
        task=task, end=ENDS[end], reason=reason, worker=worker, device=classes.get(worker, ""), plan=plan, project=project,
        started=started, ended=ended, value=value, tries=attempt, tail=tail, version=str(version), branch=version.branch,
    )  # fmt: skip


def failures_of(runs: Sequence[Run]) -> list[Failure]:
    """Return the failures among runs by their reasons, the most frequent first. `runs`: the latest first."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        if run.end != ENDS[0]:
            found.setdefault(run.reason, []).append(run)
    failures = [Failure(reason=reason, number=len(of), newest=of[0]) for reason, of in found.items()]
    return sorted(failures, key=lambda failure: -failure.number)[:TEXTS]


def tell(runs: Sequence[Run], metric: Metric) -> Told:
    """Return what the values of a metric tell. `runs`: that passed, the latest last."""
    measured = [(run.task, run.value) for run in runs if run.value is not None and math.isfinite(run.value)]
    tasks, values = tuple(task for task, _ in measured), [value for _, value in measured]
    try:
        series = Series.of(metric.name, values, metric.unit, higher_is_better=metric.higher_is_better)
    except SettingsError as error:
        return Told(unit=metric.unit, values=tuple(values), tasks=tasks, problem=str(error))
    (reviewed,) = review([series])
    floor, sign = reviewed.floor, -1.0 if series.higher_is_better else 1.0
    width, scale = math.log1p(floor.smallest_visible), unit_of(metric.unit, metric.name).scale
    low, high = sorted(math.exp(sign * (floor.center + side * width)) / scale for side in (-1, 1))
    drift = reviewed.drift
    return Told(
        unit=metric.unit,
        values=tuple(values),
        tasks=tasks,
        center=math.exp(sign * floor.center) / scale,
        low=low,
        high=high,
        visible=floor.smallest_visible,
        steps=tuple(
            Step(run=step.onset, percent=percent(sign * step.log_ratio), worse=step.log_ratio > 0)
            for step in reviewed.steps
        ),
        drift=drift.sentence if drift is not None and drift.found else "",
    )
