"""What the screens on trainings show, as plain data: their worlds, their runs, their parts, and which devices they have lent."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.page.charts.borrowings import draw_borrowings, number_of
from dtf_lightning.farm.page.screens import Query, View, refuse_unknown, title_of
from dtf_lightning.farm.record.asked import unpack
from dtf_lightning.farm.record.task_id import instance_id
from dtf_lightning.farm.record.values import Envelope
from dtf_lightning.farm.results.rows import seconds
from dtf_lightning.farm.results.store import FarmResults
from dtf_lightning.farm.server import models
from dtf_lightning.farm.server.lists.tasks import DONE_STATUSES

if TYPE_CHECKING:
    from dtf_lightning.farm.server.coordinator import Coordinator

PARTS = 500
"""That are listed."""
DONE = 50
"""Trainings that have ended, the latest."""
LOOKED_AT = 20_000
"""Latest results among which those are looked for."""
RUN = ("generation", "world_size", "step", "goodput", "samples_per_second")
"""What is told of a training's run: while it goes on by its parts, and in the end among its metrics."""
# Ids of arrays end so, and trainings are arrays: what was asked for is unpacked of few.
_DONE = f"""
    SELECT task, asked FROM (SELECT task, asked, recorded FROM farm.results ORDER BY recorded DESC LIMIT {LOOKED_AT})
    WHERE ends_with(task, '000000') AND asked <> '' ORDER BY recorded DESC
"""
_PARTS = f"""
    SELECT task, outcome, workers[1], reason, started, ended FROM farm.results
    WHERE task >= ? AND task < ? ORDER BY task LIMIT {PARTS}
"""


class TrainingScreens:
    """Runs on the coordinator's event loop. Raises `UnknownTask`, `SettingsError`, and what etcd raises."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._pool = coordinator.pool

    async def trainings(self, query: Query) -> View:
        """Those that go on, and the latest that have ended."""
        refuse_unknown(query, ())
        show = self._coordinator.tasks.show
        live = [show(one) for one in self._pool.live_tasks() if one.specification.training and one.specification.array]
        done = await asyncio.to_thread(self._coordinator.history.ask, _done)
        going = {task["task_id"] for task in live}
        told = [*live, *(models.done_task(task, envelope) for task, envelope in done if task not in going)]
        return View(screen="trainings", title="Trainings", data={"trainings": [_row(task) for task in told]})

    async def training(self, task: str) -> View:
        """One training: its world, its parts, and what it has lent."""
        told = await self._coordinator.tasks.task(task)
        done = told["status"] in DONE_STATUSES
        metrics = (told.get("results") or {}).get("metrics") or {}
        world = told["metadata"].get("training") or {}
        if not world and not (done and _is_training(await self._coordinator.tasks.envelope(task))):
            raise SettingsError(f"{task} is no training; /tasks/{task} shows it")
        parts = await self._parts(task, world)
        borrowings = list(world.get("borrowings", ()))
        drawing = draw_borrowings(borrowings, models.when(self._coordinator.now()) or "")
        data = {
            "task": told,
            "done": done,
            "world": world,
            "run": run_of(world, metrics),
            "metrics": metrics,
            "members": parts,
            "borrowings": borrowings,
            "drawing": None if drawing is None else dataclasses.asdict(drawing),
        }
        return View(screen="training", title=title_of(told), data=data)

    async def _parts(self, task: str, world: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Those that are there and those that have ended, by their numbers."""
        rows = await asyncio.to_thread(self._coordinator.history.ask, lambda results: _ended_parts(results, task))
        found = {row["task_id"]: row for row in rows}
        for index in range(min(world.get("wanted", 0), PARTS)):
            if (live := self._pool.live(instance_id(task, index))) is not None:
                found[live.task] = _part(self._coordinator.tasks.show(live))
        return [found[name] for name in sorted(found)]


def _ended_parts(results: FarmResults, training: str) -> list[dict[str, Any]]:
    with results.reading() as reader:
        rows = reader.execute(_PARTS, [instance_id(training, 0), instance_id(training, PARTS)]).fetchall()
    return [
        {
            "task_id": task, "part": number_of(task), "status": outcome, "worker": worker, "reason": reason,
            "start_time": models.when(seconds(started)), "end_time": models.when(seconds(ended)),
        }
        for task, outcome, worker, reason, started, ended in rows
    ]  # fmt: skip


def _done(results: FarmResults) -> list[tuple[str, Envelope]]:
    with results.reading() as reader:
        rows = reader.execute(_DONE).fetchall()
    tasks = [task for task, asked in rows if (told := unpack(asked)) is not None and told.training][:DONE]
    return [(task, envelope) for task in tasks if (envelope := results.envelope(task)) is not None]


def _is_training(envelope: Envelope | None) -> bool:
    asked = None if envelope is None else unpack(envelope.asked)
    return asked is not None and asked.training > 0 and asked.array > 0


def run_of(world: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of a training's run, of `RUN` and `at`, the time of the latest report; without one it is empty."""
    told = world.get("run") or metrics
    return {name: told[name] for name in (*RUN, "at") if told.get(name) is not None}


def _row(task: Mapping[str, Any]) -> dict[str, Any]:
    world = task["metadata"].get("training") or {}
    metrics = (task.get("results") or {}).get("metrics") or {}
    return {
        "task_id": task["task_id"],
        "title": title_of(task),
        "status": task["status"],
        "running": world.get("running"),
        "wanted": world.get("wanted"),
        "minimum": world.get("minimum"),
        "leaving": len(world.get("leaving", ())),
        "run": run_of(world, metrics),
        "borrowings": world.get("num_borrowings", metrics.get("borrowings")),
        "borrowed_seconds": world.get("borrowed_seconds", metrics.get("borrowed_seconds")),
        "project": task["metadata"]["project"],
        "create_time": task["create_time"],
        "end_time": task["end_time"],
    }


def _part(task: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task_id": task["task_id"],
        "part": number_of(task["task_id"]),
        "status": task["status"],
        "worker": task["worker_id"],
        "reason": task["error"] or task["metadata"].get("reason") or "",
        "start_time": task["start_time"],
        "end_time": task["end_time"],
    }
