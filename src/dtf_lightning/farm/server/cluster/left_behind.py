"""Workers whose records name this coordinator, as an earlier process of the same name has left them.

Rule: a worker that does not come back in time is signed off, as if its connection had ended here. Nobody else would do it:
while a coordinator of that name is there, the leader takes such a worker for connected.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from dtf_lightning.errors import StoreError
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.values import WorkerRecord
from dtf_lightning.farm.record.writes import Register
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.presence import PAUSE, wait_for_event

log = logging.getLogger(__name__)


def left_behind(pool: Pool, coordinator: str, is_here: Callable[[str], bool]) -> dict[str, tuple[WorkerRecord, int]]:
    """Return the workers that the record says are connected to a coordinator and are not, each with its mod revision."""
    found = {}
    for (name,), held in pool.mirror.all(Kind.WORKER).items():
        record = held.value
        assert isinstance(record, WorkerRecord)
        if record.coordinator == coordinator and not is_here(record.connection):
            found[name] = record, held.mod_revision
    return found


async def sign_off_left_behind(
    pool: Pool, record: FarmRecord, coordinator: str, is_here: Callable[[str], bool], grace: float
) -> None:
    """Sign off those that are left behind now, and have not come back within `grace` seconds. Ends when that is done."""
    before = {name: one.connection for name, (one, _) in left_behind(pool, coordinator, is_here).items()}
    await wait_for_event(asyncio.Event(), grace)
    while before:
        there = left_behind(pool, coordinator, is_here)
        before = {name: nonce for name, nonce in before.items() if name in there and there[name][0].connection == nonce}
        for name in before:
            worker, seen = there[name]
            log.warning("worker %s has not come back to %s", name, coordinator)
            write = Register(worker=name, record=replace(worker, coordinator=""), seen=seen)
            try:
                await record.answer(write)
            except StoreError as error:
                log.info("worker %s cannot be signed off yet: %s", name, error)
            await pool.wait_for_change(Kind.WORKER, name, seen, PAUSE)
