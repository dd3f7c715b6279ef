"""Workers as the API shows them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dtf_lightning.farm.record.values import WorkerRecord
from dtf_lightning.farm.rules.paging import Key
from dtf_lightning.farm.server import models
from dtf_lightning.farm.server.pool import Pool

WORKERS_SORTED_BY: dict[str, type] = {
    "worker_id": str,
    "status": str,
    "tasks": int,
    "last_seen": str,
    "health_status": str,
}
"""`tasks`: how many it has."""


def show_workers(pool: Pool, records: Mapping[str, WorkerRecord]) -> list[dict[str, Any]]:
    """Return workers as the API shows them, from one look at the tasks."""
    running: dict[str, list[str]] = {name: [] for name in records}
    for live in pool.live_tasks():
        for name in running.keys() & live.attempt.workers:
            running[name].append(live.task)
    coordinators = pool.coordinators()
    return [
        models.worker(name, record, running[name], record.coordinator in coordinators, pool.health(name))
        for name, record in records.items()
    ]


def worker_key(field: str, worker: Mapping[str, Any]) -> Key:
    """Return what a worker is sorted by."""
    key: Key = len(worker["metadata"]["tasks"]) if field == "tasks" else str(worker[field] or "")
    return key
