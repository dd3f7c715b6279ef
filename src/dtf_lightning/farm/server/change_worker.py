"""What an operator changes of a worker: one function for the API and the page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dtf_lightning.errors import StoreUnavailable
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.values import WorkerRecord
from dtf_lightning.farm.record.writes import Register
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.tasks import UnknownTask

SHOWN = 60.0
"""Seconds for the watch to show what was written."""


def find_worker(pool: Pool, name: str) -> WorkerRecord:
    """Return a worker's record. Raises `UnknownTask`."""
    record = pool.workers().get(name)
    if record is None:
        raise UnknownTask(f"this farm knows no worker {name!r}; it has {', '.join(pool.workers()) or 'none'}")
    return record


async def change_worker(pool: Pool, record: FarmRecord, name: str, **changes: Any) -> WorkerRecord:
    """Change fields of a worker's record, whoever changes it besides, and return it once the watch shows it.

    Raises `UnknownTask`, and what etcd raises.
    """
    if "cordoned" in changes:
        changes["cordoned_for"] = ""  # from now on it is as this operator wants it
    for _ in range(10):
        changed = replace(find_worker(pool, name), **changes)
        seen = pool.mirror.seen(Kind.WORKER, name)
        if await record.answer(Register(worker=name, record=changed, seen=seen)):
            await pool.wait_for_change(Kind.WORKER, name, seen, SHOWN)
            return changed
        await pool.wait_for_change(Kind.WORKER, name, seen, 1.0)
    raise StoreUnavailable(f"worker {name}: it changes all the time, try again")
