"""Reads now and then how long tasks took, for the leader's scheduler: in a thread, so that no decision asks the database."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import NoReturn

from dtf_lightning.farm.results.history import History
from dtf_lightning.farm.results.store import ResultsBusy
from dtf_lightning.farm.rules.expectations import Expectations
from dtf_lightning.farm.server.presence import wait_for_event

log = logging.getLogger(__name__)

EVERY = 60.0
"""Seconds between two readings."""


async def keep_expecting(history: History, tell: Callable[[Expectations], object]) -> NoReturn:
    """Tell what history knows, at once and then every `EVERY` seconds, until cancelled."""
    while True:
        try:
            samples = await asyncio.to_thread(history.durations)
            tell(await asyncio.to_thread(Expectations.of_samples, samples))
        except ResultsBusy as error:
            log.warning("how long tasks take is not known anew: %s", error)
        await wait_for_event(asyncio.Event(), EVERY)
