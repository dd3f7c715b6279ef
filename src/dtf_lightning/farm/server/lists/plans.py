"""How a plan goes: how many of its tasks are at what."""

from __future__ import annotations

import asyncio
from typing import Any

from dtf_lightning.farm.results.history import History
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.tasks import UnknownTask


async def plan_counts(pool: Pool, history: History, plan: str) -> dict[str, Any]:
    """Return `counts` by status, `total` and `done`. Raises `UnknownTask` for a plan of which nobody knows a task.

    What is not done is looked at first; a task that ends meanwhile is counted as it was.
    """
    counts: dict[str, int] = {}
    live: list[str] = []
    for task in pool.live_tasks():
        if task.specification.plan == plan:
            status = pool.status(task)
            counts[status] = counts.get(status, 0) + 1
            live.append(task.task)
    ended = await asyncio.to_thread(history.outcomes, plan, live)
    total = len(live) + sum(ended.values())
    if not total:
        raise UnknownTask(f"this farm knows no plan {plan!r}")
    return {"counts": counts | ended, "total": total, "done": total - len(live)}
