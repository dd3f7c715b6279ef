"""What a coordinator sees of its farm, from its memory. Nothing here waits but for the loop's next turn."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from dtf_lightning.farm.record.values import WorkerState
from dtf_lightning.farm.rules.needs import DEFAULT_NEED
from dtf_lightning.farm.rules.watching.devices import device_class
from dtf_lightning.farm.rules.watching.observation import SeenCoordinator, SeenQueue, SeenWorker, WorkerErrors
from dtf_lightning.farm.server.cluster.view import nodes_of
from dtf_lightning.farm.server.lists.tasks import SLICE
from dtf_lightning.farm.server.pool import LIVE_STATUSES, LiveTask, Pool
from dtf_lightning.farm.server.scheduling.projects import who_lacks_what


@dataclass(kw_only=True)
class _Class:
    """Tasks that need devices of one class."""

    waiting: list[LiveTask]
    running: list[LiveTask]


def see_workers(pool: Pool, errors: Mapping[str, WorkerErrors], now: float) -> list[SeenWorker]:
    """Return the workers. `now`: seconds since the epoch."""
    coordinators, seen = pool.coordinators(), []
    for name, record in pool.workers().items():
        report = pool.health(name)
        seen.append(
            SeenWorker(
                name=name,
                connected=record.coordinator in coordinators,
                draining=record.state is WorkerState.DRAINING,
                cordoned=record.cordoned,
                cordoned_at=record.cordoned_at,
                cordoned_for=record.cordoned_for,
                device=device_class(record.devices, record.labels),
                health=None if report is None else report.status,
                health_reason="" if report is None else report.reason,
                report_age=None if report is None else now - report.at,
                errors=errors.get(name, WorkerErrors()),
                metrics={} if report is None else report.metrics,
            )
        )
    return seen


def see_coordinators(pool: Pool, now: float) -> list[SeenCoordinator]:
    """Return the coordinators that are there, have gone, or are disabled."""
    return [
        SeenCoordinator(
            name=node.name,
            there=node.there,
            enabled=node.enabled,
            health=node.health,
            reasons=node.reasons,
            word_age=None if node.told is None else now - node.told.at,
        )
        for node in nodes_of(pool.mirror)
    ]


async def see_queues(pool: Pool, now: float, counts: dict[str, int] | None = None) -> list[SeenQueue]:
    """Return what waits for a worker, by device classes. The loop is let go after every `SLICE` tasks.

    `counts`: is filled with how many tasks are at what.
    """
    counts = {} if counts is None else counts
    counts |= dict.fromkeys(LIVE_STATUSES, 0)
    classes: dict[str, _Class] = {}
    for number, live in enumerate(list(pool.live_tasks()), 1):
        status = pool.status(live)
        counts[status] += 1
        if status == "pending" or live.attempt.workers:
            need = (live.specification.needs or (DEFAULT_NEED,))[0]
            one = classes.setdefault(device_class(need.amounts, need.labels), _Class(waiting=[], running=[]))
            # Parts of a training wait as long as others need the devices: nobody is waiting for them.
            if status != "pending":
                one.running.append(live)
            elif not live.specification.training:
                one.waiting.append(live)
        if number % SLICE == 0:
            await asyncio.sleep(0)
    return [_queue(device, one, now, pool) for device, one in sorted(classes.items()) if one.waiting]


def _queue(device: str, one: _Class, now: float, pool: Pool) -> SeenQueue:
    oldest = min(one.waiting, key=lambda live: (live.specification.submitted, live.task))
    since, priority = oldest.specification.submitted, oldest.specification.priority
    return SeenQueue(
        device=device,
        waiting=len(one.waiting),
        oldest=max(now - since, 0.0),
        task=oldest.task,
        overtaken=sum(
            live.specification.submitted > since and live.specification.priority <= priority for live in one.running
        ),
        lacking=who_lacks_what(pool.mirror, pool.workers(), oldest.specification),
    )
