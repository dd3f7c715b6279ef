"""What history tells the leader: how long tasks took, and results that are known already. In threads, so that no decision asks
the database.

Rule: what history does not tell, or not now, is not known; the farm goes on without it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import NoReturn

from dtf_lightning.errors import DtfError
from dtf_lightning.farm.record.values import Envelope, TaskSpecification
from dtf_lightning.farm.results.history import History
from dtf_lightning.farm.results.store import ResultsBusy
from dtf_lightning.farm.rules.expectations import Expectations
from dtf_lightning.farm.rules.watching.devices import device_class
from dtf_lightning.farm.server.envelopes import fingerprint_of
from dtf_lightning.farm.server.files import FarmFiles
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.presence import wait_for_event
from dtf_lightning.farm.server.scheduling.reuse import Answers, KnownResult

log = logging.getLogger(__name__)

EVERY = 60.0
"""Seconds between two readings of how long tasks took."""


async def keep_expecting(history: History, pool: Pool, *tell: Callable[[Expectations], object]) -> NoReturn:
    """Tell all of these what history knows, at once and then every `EVERY` seconds, until cancelled."""
    while True:
        try:
            samples = await asyncio.to_thread(history.durations)
            classes = {name: device_class(one.devices, one.labels) for name, one in pool.workers().items()}
            known = await asyncio.to_thread(Expectations.of_samples, samples, classes)
            for one in tell:
                one(known)
        except ResultsBusy as error:
            log.warning("how long tasks take is not known anew: %s", error)
        await wait_for_event(asyncio.Event(), EVERY)


def known_results(history: History, files: FarmFiles, asked: Mapping[str, TaskSpecification], now: float) -> Answers:
    """Return results that may stand for those of some tasks. Call it from a thread.

    A result is known as long as all that it has left is there: its output, and its artifacts.

    Args:
        asked: the tasks, and what they were asked for.
        now: seconds since the epoch.
    """
    fingerprints = {task: fingerprint_of(specification) for task, specification in asked.items()}
    there: dict[str, bool] = {}
    answers = {}
    try:
        found = history.reusable(sorted(set(fingerprints.values())))
        for task, specification in asked.items():
            if (one := found.get(fingerprints[task])) is None:
                continue
            source, envelope = one
            if source not in there:
                there[source] = is_whole(files, source, envelope, specification.gang)
            if there[source] and envelope.ended is not None and now - envelope.ended <= specification.reuse:
                answers[task] = KnownResult(task=source, envelope=envelope)
    except (DtfError, OSError) as error:
        log.warning("whether results are known cannot be told, %d tasks run: %s", len(asked) - len(answers), error)
    return answers


def is_whole(files: FarmFiles, task: str, envelope: Envelope, gang: int) -> bool:
    """Whether the output and the artifacts of a result are still there. Raises what files and store raise."""
    written = sum(files.log_size(task, envelope.revision, rank) for rank in range(gang))
    if written < envelope.log_bytes:
        return False
    return not envelope.artifacts or {one.url for one in files.artifacts.all(task, envelope.revision)}.issuperset(
        envelope.artifacts.values()
    )
