"""The tasks that are not done, in numbers, from one look at them.

The loop is let go after every `SLICE` tasks: what changes meanwhile may be counted as it was or as it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.rules.needs import DEFAULT_NEED
from dtf_lightning.farm.server.lists.tasks import SLICE
from dtf_lightning.farm.server.pool import LIVE_STATUSES, LiveTask, Pool

SHOWN = 20
"""Tasks of each status that are named."""


@dataclass(kw_only=True)
class Summary:
    """What is at what."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LIVE_STATUSES, 0))
    """Status -> how many."""
    oldest: dict[str, list[LiveTask]] = field(default_factory=lambda: {status: [] for status in LIVE_STATUSES})
    """Status -> the first `SHOWN` by their ids, which carry the time of the submission."""
    tasks_of: dict[str, list[str]] = field(default_factory=dict)
    """Worker -> the tasks that it has."""
    used: dict[str, dict[str, float]] = field(default_factory=dict)
    """Worker -> resource -> how much of it those have been granted."""


async def summarise(pool: Pool) -> Summary:
    """Look at all tasks that are not done."""
    told = Summary()
    for number, task in enumerate(sorted(task for (task,) in pool.mirror.all(Kind.TASK)), 1):
        if (live := pool.live(task)) is not None:
            status = pool.status(live)
            told.counts[status] += 1
            if len(told.oldest[status]) < SHOWN:
                told.oldest[status].append(live)
            granted = granted_to(live) if live.attempt.workers else {}
            for worker in live.attempt.workers:
                told.tasks_of.setdefault(worker, []).append(task)
                used = told.used.setdefault(worker, {})
                for resource, amount in granted.items():
                    used[resource] = used.get(resource, 0.0) + amount
        if number % SLICE == 0:
            await asyncio.sleep(0)
    return told


def granted_to(live: LiveTask) -> Mapping[str, float]:
    """Return what an attempt has been given of its worker."""
    needs = live.specification.needs or (DEFAULT_NEED,)
    return needs[min(live.attempt.alternative, len(needs) - 1)].amounts
