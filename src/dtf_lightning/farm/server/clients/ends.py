"""Which of many tasks have ended: a client that waits for a thousand asks one question, and not a thousand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.record.values import TaskOutcome
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.tasks import Tasks, UnknownTask

MAX_TASKS = 500
"""Of one question, whose ids stand in its address."""
TOGETHER = 0.05
"""Seconds after the first end for others, which are told with it."""
_ENDS = {outcome.value for outcome in TaskOutcome}


class TaskEnds:
    """Runs on the coordinator's event loop."""

    def __init__(self, pool: Pool, tasks: Tasks) -> None:
        self._pool = pool
        self._tasks = tasks

    async def of(self, names: Sequence[str], timeout: float) -> dict[str, Any]:
        """Return those of some tasks that have `ended`, as soon as there is one, or after `timeout` seconds.

        Those that the farm does not know are told as `unknown`. Raises `SettingsError` for too many, and what etcd raises.
        """
        if not 0 < len(names) <= MAX_TASKS:
            raise SettingsError(f"tasks: expected 1 to {MAX_TASKS} ids with commas between them, got {len(names)}")
        if timeout:
            await self._pool.wait_for_any(names, lambda: not all(map(self._goes_on, names)), timeout)
            await self._pool.wait_for_any(names, lambda: not any(map(self._goes_on, names)), min(TOGETHER, timeout))
        ended, unknown = [], []
        for name in names:
            if not self._goes_on(name):
                try:
                    task = await self._tasks.task(name)
                except UnknownTask:
                    unknown.append(name)
                else:
                    ended += [task] if task["status"] in _ENDS else []
        return {"ended": ended, "unknown": unknown}

    def _goes_on(self, name: str) -> bool:
        return self._pool.live(name) is not None or self._pool.is_unborn(name)
