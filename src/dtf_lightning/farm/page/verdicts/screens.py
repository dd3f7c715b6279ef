"""What Grid, Test and Compare show, as plain data. All numbers are made by `results.tests`, in the database of results.

Rule: a filter changes what is listed, never a total, and without any verdict every screen says so and shows the rest.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeVar

from dtf_lightning.clock import SystemClock
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.page.charts.series import draw_series
from dtf_lightning.farm.page.screens import Query, View, refuse_unknown
from dtf_lightning.farm.page.verdicts.comparisons import COMPARE, read_comparisons
from dtf_lightning.farm.results.rows import seconds
from dtf_lightning.farm.results.store import Wanted
from dtf_lightning.farm.results.tests.course import DURATION, Course, CourseWanted, Run, read_course
from dtf_lightning.farm.results.tests.grid import By, Grid, GridWanted, Which, read_grid
from dtf_lightning.farm.results.tests.sides import Side, Sides, newest_plans, read_sides
from dtf_lightning.farm.rules.watching.devices import device_class
from dtf_lightning.farm.server.clients.quarantine import QuarantineKeeper
from dtf_lightning.farm.server.models import when
from dtf_lightning.farm.verdicts.metrics import Metric
from dtf_lightning.farm.verdicts.quarantine import Quarantine
from dtf_lightning.farm.verdicts.rates import interval

if TYPE_CHECKING:
    from dtf_lightning.farm.server.coordinator import Coordinator

Kind = TypeVar("Kind", bound=Enum)
ROWS = 50
"""Tests of one page of the grid."""
LISTED = 100
"""Runs of a test that are listed."""
CHOICES = 20
"""Plans that are offered to compare."""
COMPARISONS = 10
GONE = "machines that have gone"
"""The device class of workers that the farm knows no more."""
GRID_FILTERS = ("by", "which", "project", "search")
TEST_FILTERS = ("name", "project", "device", "worker", "branch", "metric")
COMPARE_FILTERS = ("base", "candidate", "metric")
UNITS = {"peak_memory": "B", "cpu_seconds": "s"}
"""Of what workers add to every result."""


class VerdictScreens:
    """Runs on the coordinator's event loop; asks the database in threads. Raises `SettingsError` and `ResultsBusy`."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._history = coordinator.history
        self._quarantine = QuarantineKeeper(coordinator.pool, coordinator.record, SystemClock())

    async def grid(self, query: Query, limit: int | None = None) -> View:
        """Tests against device classes, workers or plans."""
        refuse_unknown(query, (*GRID_FILTERS, "behind"))
        wanted = GridWanted(
            by=_one_of(By, "by", query.get("by", "")),
            which=_one_of(Which, "which", query.get("which", "")),
            project=query.get("project", ""),
            search=query.get("search", "").strip(),
            behind=query.get("behind", ""),
            limit=limit or ROWS,
        )
        classes = self._classes()
        grid = await asyncio.to_thread(self._history.ask, lambda results: read_grid(results, wanted, classes))
        data = shown_grid(grid, wanted)
        allowed = self._allowed(wanted.project)
        for row in data["rows"]:
            row["quarantine"] = told_of(allowed, row["test"])
        return View(screen="grid", title="Grid", data=data)

    async def test(self, query: Query, limit: int | None = None) -> View:
        """One test over time."""
        refuse_unknown(query, TEST_FILTERS)
        test = query.get("name", "")
        if not test:
            raise SettingsError("name: which test? The grid lists all of them")
        device = query.get("device")
        metric = Metric.parse(query.get("metric", "") or DURATION)
        wanted = CourseWanted(
            test=test,
            project=query.get("project", ""),
            worker=query.get("worker", ""),
            device="" if device == GONE else device,
            branch=query.get("branch", ""),
            metric=metric,
        )
        classes = self._classes()
        course = await asyncio.to_thread(self._history.ask, lambda results: read_course(results, wanted, classes))
        quarantine = told_of(self._allowed(wanted.project), test)
        data = {**shown_course(course, test, metric, limit or LISTED), "quarantine": quarantine}
        return View(screen="test", title=test, data=data)

    async def compare(self, query: Query) -> View:
        """Two plans side by side, and what comparisons on this farm have found."""
        refuse_unknown(query, COMPARE_FILTERS)
        base, candidate = query.get("base", "").strip(), query.get("candidate", "").strip()
        metric = Metric.parse(query.get("metric", "") or DURATION)
        plans = await asyncio.to_thread(self._history.ask, newest_plans)
        sides = None
        if base and candidate:
            sides = await asyncio.to_thread(
                self._history.ask, lambda results: read_sides(results, base, candidate, metric)
            )
        data = {
            **shown_sides(sides),
            "asked": {"base": base, "candidate": candidate},
            "metric": named(metric),
            "plans": [_side(side) for side in plans[:CHOICES]],
            "verdicts": await self._comparisons(),
        }
        return View(screen="compare", title="Compare", data=data)

    async def _comparisons(self) -> list[dict[str, Any]]:
        rows = await asyncio.to_thread(self._history.page, Wanted(name=COMPARE), limit=COMPARISONS)
        return await asyncio.to_thread(read_comparisons, rows, self._coordinator.tasks.files)

    def _allowed(self, project: str) -> Quarantine:
        """Tests whose failures do not count: of a project, or of all."""
        told = self._quarantine.list(project)
        return Quarantine([*told["quarantine"], *told["expired"]])

    def _classes(self) -> dict[str, str]:
        workers = self._coordinator.pool.workers()
        return {name: device_class(record.devices, record.labels) for name, record in workers.items()}


def told_of(allowed: Quarantine, test: str) -> str | None:
    """Return for people whether a test's failures do not count, or did not until lately."""
    if (one := allowed.of(test)) is not None:
        return one.told
    return None if (before := allowed.expired(test)) is None else before.told_expired


def _one_of(kind: type[Kind], field: str, text: str) -> Kind:
    members = list(kind)
    found = next((member for member in members if member.value == text), None if text else members[0])
    if found is None:
        raise SettingsError(f"{field}: {text!r} is none; expected one of {', '.join(one.value for one in members)}")
    return found


def named(metric: Metric) -> str:
    """Return a metric as it is asked for."""
    usual = Metric.parse(f"{metric.name}:{metric.unit}").higher_is_better
    better = "" if metric.higher_is_better == usual else ":higher" if metric.higher_is_better else ":lower"
    return f"{metric.name}:{metric.unit}{better}"


def offered(names: Iterable[str]) -> list[str]:
    """Return metrics with a unit each, as a beginning: a person says which it is."""
    return [f"{DURATION}:s", *(f"{name}:{UNITS.get(name, 'count')}" for name in names if name != DURATION)]


def shown_grid(grid: Grid, wanted: GridWanted) -> dict[str, Any]:
    """Return a grid as JSON can hold it. In columns of plans a cell is compared with the plan before."""
    names = {place: (place or GONE) if wanted.by is By.CLASS else place for place in grid.places}
    rows = []
    for row in grid.rows:
        cells = {}
        for number, place in enumerate(grid.places):
            if (cell := row.cells.get(place)) is None:
                continue
            before = cell.before
            if wanted.by is By.PLAN:
                older = (row.cells[one].last for one in grid.places[number + 1 :] if one in row.cells)
                before = next(older, "")
            changed = before not in ("", cell.last)
            cells[names[place]] = {
                "last": cell.last, "before": before, "changed": changed, "runs": cell.runs, "failed": cell.failed,
                "ended": when(seconds(cell.ended)),
            }  # fmt: skip
        changed = row.before not in ("", row.last)
        rows.append({"test": row.test, "last": row.last, "changed": changed, "runs": row.runs, "cells": cells})
    return {
        "by": wanted.by.value,
        "which": wanted.which.value,
        "places": list(names.values()),
        "rows": rows,
        "num_tests": grid.num_tests,
        "num_failed": grid.num_failed,
        "num_changed": grid.num_changed,
        "next": grid.rows[-1].test if grid.more else None,
    }


def shown_course(course: Course, test: str, metric: Metric, limit: int) -> dict[str, Any]:
    """Return a test as JSON can hold it."""
    told = dataclasses.asdict(course.told)
    values, tasks = told.pop("values"), told.pop("tasks")
    drawing = draw_series(course.told)
    for step in told["steps"]:
        step["task"] = tasks[step["run"]]
    return {
        "test": test,
        "count": _count(course.count),
        "by_device": [{"device": name or GONE} | _count(count) for name, count in course.by_device.items()],
        "by_worker": [{"worker": name} | _count(count) for name, count in course.by_worker.items()],
        "runs": [_run(run) for run in course.runs[:limit]],
        "num_listed": len(course.runs),
        "failures": [
            {"reason": one.reason, "number": one.number, **_run(one.newest), "tail": one.newest.tail} for one in course.failures
        ],
        "reruns": [_run(run) for run in course.reruns],
        "metric": named(metric),
        "metrics": offered(course.metrics),
        "told": {**told, "steps": list(told["steps"])},
        "series": [{"task": task, "value": value} for task, value in zip(tasks, values, strict=True)],
        "drawing": None if drawing is None else dataclasses.asdict(drawing),
    }  # fmt: skip


def _count(count: Any) -> dict[str, Any]:
    own = count.runs - count.lost
    return {
        **dataclasses.asdict(count),
        "failure_rate": count.failed / own if own else None,
        "flaky_rate": count.tried / own if own else None,
        "flaky_between": list(interval(count.tried, own)) if own else None,
    }


def _run(run: Run) -> dict[str, Any]:
    took = (run.ended - run.started).total_seconds() if run.started and run.ended else None
    return {
        "task": run.task, "end": run.end, "reason": run.reason, "worker": run.worker, "device": run.device or GONE,
        "plan": run.plan, "project": run.project, "version": run.version, "tries": run.tries, "seconds": took,
        "value": run.value, "ended": when(seconds(run.ended)),
    }  # fmt: skip


def _side(side: Side) -> dict[str, Any]:
    return {
        "plan": side.plan, "version": str(side.version), "commit": side.version.commit, "branch": side.version.branch,
        "ended": when(seconds(side.ended)), "runs": side.runs,
    }  # fmt: skip


def shown_sides(sides: Sides | None) -> dict[str, Any]:
    """Return a comparison as JSON can hold it."""
    if sides is None:
        return {"base": None, "candidate": None, "counts": {}, "num_tests": 0, "pairs": []}
    pairs = [
        {
            "test": pair.test, "state": pair.state, "base": pair.base, "candidate": pair.candidate,
            "base_value": pair.base_value, "candidate_value": pair.candidate_value, "change": pair.change,
            "visible": pair.visible, "told": pair.told,
        }
        for pair in sides.pairs
    ]  # fmt: skip
    return {
        "base": _side(sides.base),
        "candidate": _side(sides.candidate),
        "counts": sides.counts,
        "num_tests": sides.num_tests,
        "pairs": pairs,
    }
