"""`CacheRoom` keeps a worker's cache folder within its limit: inputs and what tasks' libraries have downloaded, together.

Rules that this file guards:
- Nobody knows what of the libraries' files a running task uses, so they are trimmed while no attempt is prepared or runs;
  an attempt that comes meanwhile waits until that is over.
- Inputs keep to the whole limit by themselves (`InputCache`), libraries have what these leave.
- It looks at most once in `EVERY` seconds: looking means measuring every file.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from dtf_lightning.clock import Clock, SystemClock
from dtf_lightning.farm.worker.caches.inputs import InputCache
from dtf_lightning.farm.worker.caches.libraries import trim

log = logging.getLogger(__name__)

EVERY = 60.0
INPUTS = "sources"
"""The folder of inputs in the cache folder."""


class CacheRoom:
    """Thread-safe.

    Args:
        folder: of the worker's caches.
        limit: bytes of all of it.
    """

    def __init__(self, folder: Path, limit: int, *, clock: Clock | None = None) -> None:
        self._folder, self._limit, self._clock = folder, limit, clock or SystemClock()
        self.inputs = InputCache(folder / INPUTS, limit, clock=clock)
        self._trimming = threading.Lock()
        self._last: float | None = None

    def wait(self) -> None:
        """Return when nothing is being trimmed. Whoever asks counts as busy from before."""
        with self._trimming:
            pass

    def tidy(self, busy: Callable[[], bool]) -> list[str]:
        """Trim, unless an attempt is at hand or it was done lately; returns what was removed."""
        with self._trimming:
            now = self._clock.monotonic()
            if busy() or (self._last is not None and now - self._last < EVERY):
                return []
            self._last = now
            removed = trim(self._folder, max(self._limit - self.inputs.size, 0), but=INPUTS)
        if removed:
            log.info("the cache was over its limit: removed %s", ", ".join(removed))
        return removed
