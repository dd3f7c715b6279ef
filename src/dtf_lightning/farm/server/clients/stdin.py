"""The standard input of tasks: clients send it, workers fetch it.

Rules that this file guards:
- It lies in the folder that all coordinators share, whole and from its beginning: a coordinator's death loses nothing of it, and
  an attempt that is tried again reads the same.
- It comes in chunks with offsets, as output does: a chunk that is there already is passed over.
- Its end is told, never guessed: a connection that breaks is not the end of the input.
"""

from __future__ import annotations

import asyncio

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.server.files import FarmFiles
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.tasks import CHUNK, POLL, UnknownTask

MAX_STDIN = 64 * 1024 * 1024
"""Bytes of one task's standard input: it is kept for other attempts."""
SETTLING = 1.0
"""Seconds for this coordinator to see a task that was submitted through another one."""


class TaskInputs:
    """Runs on the coordinator's event loop."""

    def __init__(self, pool: Pool, files: FarmFiles) -> None:
        self._pool = pool
        self._files = files
        self._changes = 0
        """Parts that came through this coordinator, of whatever task."""

    async def add(self, task: str, offset: int, data: bytes, *, complete: bool) -> int:
        """Keep a part of a task's input; returns how much there is. `complete`: this was the last of it.

        Raises `SettingsError` for a task that reads none or has ended, and for too much; `OutOfOrder` for a
        chunk behind a gap, `OSError`.
        """
        await self._pool.wait_for(task, lambda: self._pool.live(task) is not None, SETTLING)
        live = self._pool.live(task)
        if live is None:
            raise SettingsError(f"task {task} has ended, or is not known: nobody reads its standard input")
        if live.specification.stdin != task:
            raise SettingsError(f"task {task} was submitted without a standard input")
        if offset + len(data) > MAX_STDIN:
            raise SettingsError(
                f"the standard input of a task has {MAX_STDIN >> 20} MiB at most: put it into a file, which is taken along"
            )
        size = await asyncio.to_thread(self._files.append_stdin, task, offset, data, complete=complete)
        self._changes += 1
        self._pool.wake(task)
        return size

    async def read(self, task: str, offset: int, wait: float) -> tuple[bytes, bool]:
        """Return what a task has to read from `offset` on, and whether its end comes behind that, once there is something.

        `wait`: seconds after which nothing is returned. Raises `UnknownTask` for a task that is not known, or has ended.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wait
        while (live := self._pool.live(task)) is not None and (name := live.specification.stdin):
            seen = self._changes
            data, complete = await asyncio.to_thread(self._files.read_stdin, name, offset, CHUNK)
            left = deadline - loop.time()
            if data or complete or left <= 0:
                return data, complete
            # Another coordinator may store it: it is looked at again soon.
            await self._pool.wait_for(task, lambda: self._changed(task, seen), min(POLL, left))  # noqa: B023
        raise UnknownTask(f"there is no task {task!r} that reads a standard input now")

    def _changed(self, task: str, seen: int) -> bool:
        return self._changes != seen or self._pool.live(task) is None
