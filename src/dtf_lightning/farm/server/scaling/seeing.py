"""What a coordinator sees of its farm for scaling, from its memory. Nothing here waits but for the loop's next turn."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.values import Ending, WorkerRecord, WorkerState
from dtf_lightning.farm.rules.expectations import Expectations
from dtf_lightning.farm.rules.needs import Need, needed
from dtf_lightning.farm.rules.scaling.load import UNKNOWN, OtherWorker, WaitingShape
from dtf_lightning.farm.rules.scaling.observation import PoolWorker, share_of
from dtf_lightning.farm.server.lists.tasks import SLICE
from dtf_lightning.farm.server.pool import LiveTask, Pool
from dtf_lightning.farm.server.scheduling.projects import limits_of, ready_task, totals
from dtf_lightning.farm.settings.pools import POOL_LABEL

ShapeKey = tuple[str, int, tuple[tuple[str, int], ...]]


@dataclass(kw_only=True)
class _Shape:
    needs: tuple[Need, ...]
    gang: int
    limits: tuple[tuple[str, int], ...]
    task: str
    oldest: float
    number: int = 0
    seconds: float = 0.0


@dataclass(kw_only=True)
class SeenFarm:
    """What waits, and what each worker is at."""

    waiting: list[WaitingShape]
    used: dict[str, float]
    """Worker -> how much of it is taken, of those that have a task."""


async def see_farm(pool: Pool, expectations: Expectations, now: float) -> SeenFarm:
    """Look at all tasks; the loop is let go after every `SLICE` of them. `now`: seconds since the epoch."""
    shapes: dict[ShapeKey, _Shape] = {}
    used: dict[str, float] = {}
    held: Counter[str] = Counter()
    workers = pool.workers()
    for number, live in enumerate(list(pool.live_tasks()), 1):
        told = live.specification
        if live.attempt.workers:
            need = (needed(told.needs, told.secrets))[live.attempt.alternative]
            held.update(limits_of(pool.mirror, told))
            for worker in live.attempt.workers:
                _use(used, worker, workers.get(worker), need)
        elif not told.training and (waits := _instances_that_wait(pool, live)):
            _note(shapes, pool, live, waits, expectations, now)
        if number % SLICE == 0:
            await asyncio.sleep(0)
    for kept in pool.mirror.all(Kind.ENDING).values():
        assert isinstance(kept.value, Ending)
        for worker in kept.value.workers:
            _use(used, worker, workers.get(worker), kept.value.need)
    there = totals(pool.mirror)
    return SeenFarm(
        waiting=[found for shape in shapes.values() if (found := _as_licences_allow(shape, there, held)) is not None],
        used=used,
    )


def see_workers(pool: Pool, name: str, seen: SeenFarm, idle: dict[str, float], now: float) -> list[PoolWorker]:
    """Return the workers of a pool, in the order in which they came into being. `idle`: worker -> since when it has no task."""
    return [
        PoolWorker(
            name=worker,
            used=seen.used.get(worker, 0.0),
            busy=worker in seen.used,
            idle=now - idle.get(worker, now),
            leaving=record.state is WorkerState.DRAINING or record.cordoned,
        )
        for worker, record in sorted(pool.workers().items(), key=lambda one: _ordinal(one[0]))
        if f"{POOL_LABEL}{name}" in record.labels
    ]


def see_others(pool: Pool, pools: Collection[str]) -> list[OtherWorker]:
    """Return the workers that are of none of these pools and take tasks."""
    labels = {f"{POOL_LABEL}{name}" for name in pools}
    return [
        OtherWorker(devices=dict(record.devices), labels=record.labels)
        for record in pool.workers().values()
        if labels.isdisjoint(record.labels)
        and record.coordinator
        and not record.cordoned
        and record.state in (WorkerState.ONLINE, WorkerState.BUSY)
    ]


def _ordinal(name: str) -> tuple[int, str]:
    last = name.rpartition("-")[2]
    return int(last) if last.isdecimal() else 0, name


def _use(used: dict[str, float], worker: str, record: WorkerRecord | None, need: Need) -> None:
    share = share_of(need, dict(record.devices), record.labels) if record is not None else None
    used[worker] = min(used.get(worker, 0.0) + (1.0 if share is None else share), 1.0)


def _instances_that_wait(pool: Pool, live: LiveTask) -> int:
    """How many tasks this one is that could start: of an array those, too, that are still to be born."""
    status = pool.status(live)
    if live.specification.array:
        return live.specification.array - live.attempt.born if status != "waiting" else 0
    return 1 if status == "pending" else 0


def _note(
    shapes: dict[ShapeKey, _Shape], pool: Pool, live: LiveTask, number: int, expectations: Expectations, now: float
) -> None:
    ready = ready_task(pool.mirror, live.task, live.attempt, expectations)
    limits = tuple(sorted(ready.limits.items()))
    key = repr(ready.needs), ready.gang, limits
    shape = shapes.get(key)
    if shape is None:
        shape = shapes[key] = _Shape(needs=ready.needs, gang=ready.gang, limits=limits, task=live.task, oldest=0.0)
    shape.number += number
    shape.seconds += number * (UNKNOWN if ready.expected is None else ready.expected)
    waited = max(now - ready.submitted, 0.0)
    if waited > shape.oldest:
        shape.oldest, shape.task = waited, live.task


def _as_licences_allow(shape: _Shape, there: dict[str, int], held: Counter[str]) -> WaitingShape | None:
    """What of it more workers would help: what waits for a licence does not wait for a worker."""
    number = shape.number
    for licence, wanted in shape.limits:
        if wanted > 0:
            number = min(number, (there.get(licence, 0) - held[licence]) // wanted)
    if number <= 0:
        return None
    return WaitingShape(
        needs=shape.needs,
        gang=shape.gang,
        number=number,
        seconds=shape.seconds * number / shape.number,
        oldest=shape.oldest,
        task=shape.task,
    )
