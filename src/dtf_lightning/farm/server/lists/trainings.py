"""What people see of a training: its world, and which of its devices others have."""

from __future__ import annotations

from typing import Any

from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.task_id import instance_id
from dtf_lightning.farm.record.values import YieldRequest
from dtf_lightning.farm.server.models import when
from dtf_lightning.farm.server.pool import LiveTask, Pool


def world_of(pool: Pool, training: LiveTask) -> dict[str, Any]:
    """Return how many parts a training has, of how many that it wants, and where; who wants or got whose device."""
    running: dict[str, str] = {}
    leaving: list[dict[str, Any]] = []
    away: list[dict[str, Any]] = []
    for index in range(training.specification.array):
        part = pool.live(instance_id(training.task, index))
        if part is None:
            continue
        if not part.attempt.workers:
            if part.attempt.yielded:
                away.append({"part": part.task, "since": when(part.attempt.yielded)})
            continue
        running[part.task] = part.attempt.workers[0]
        held = pool.mirror.get(Kind.YIELD, part.task)
        if held is not None and isinstance(held.value, YieldRequest) and held.value.revision == part.revision:
            asked = {"part": part.task, "worker": part.attempt.workers[0]}
            leaving.append(asked | {"wanted_by": held.value.wanted_by, "since": when(held.value.at)})
    return {
        "minimum": training.specification.training,
        "wanted": training.specification.array,
        "running": len(running),
        "workers": running,
        "leaving": leaving,
        "away": away,
    }
