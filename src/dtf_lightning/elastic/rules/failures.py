"""Decides how many failures are too many for a run to go on.

The run aborts beyond either of two limits: the number of unplanned rescales in a row (`max_consecutive_failures`), and
the share of the world that failed within `failure_window` (`failure_tolerance`). Both are counted from the generation's
own fields and the failures since, so that a new leader comes to the same numbers. Who ends because of another member's death
counts in neither: torchrun, too, counts a failure once, and not the workers that it ends for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from dtf_lightning.clock import utc_text
from dtf_lightning.elastic.rules.generation import Failure, Generation
from dtf_lightning.elastic.settings import ElasticSettings


def num_consecutive(settings: ElasticSettings, generation: Generation, failures: Sequence[Failure], wall: float) -> int:
    """Return the number of unplanned rescales in a row, that of the running generation included if it broke."""
    broke = any(failure.generation == generation.number for failure in failures)
    return _num_earlier(settings, generation, failures, wall) + broke


def _num_earlier(settings: ElasticSettings, generation: Generation, failures: Sequence[Failure], wall: float) -> int:
    """Return the length of the row that led to the running generation; 0 if that has lived for long enough."""
    breaks = [failure.at for failure in failures if failure.generation == generation.number]
    lived = min(breaks, default=wall) - generation.unbroken_since
    return 0 if lived >= settings.failure_window else generation.num_consecutive_failures


def largest_world(settings: ElasticSettings, generation: Generation, wall: float) -> int:
    """Return the number of workers of the largest world that `failure_window` reaches."""
    recent = [size for end, size in generation.recent_worlds if end > wall - settings.failure_window]
    return max([generation.world_size, *recent])


def beyond_limits(
    settings: ElasticSettings, generation: Generation, failures: Sequence[Failure], wall: float
) -> str | None:
    """Return why the run must abort, with every member that failed; `None` while it may go on."""
    in_a_row = num_consecutive(settings, generation, failures, wall)
    if in_a_row > settings.max_consecutive_failures:
        return (
            f"{in_a_row} unplanned rescales in a row, none of which lived for {settings.failure_window:g} s "
            f"(max_consecutive_failures is {settings.max_consecutive_failures}):\n{list_failures(failures)}"
        )
    recent = [failure for failure in failures if failure.at > wall - settings.failure_window and failure.counts]
    num_failed = sum(failure.num_workers for failure in recent)
    largest = largest_world(settings, generation, wall)
    if num_failed > settings.failure_tolerance * largest:
        return (
            f"{num_failed} workers failed within {settings.failure_window:g} s, the largest world was {largest} "
            f"(failure_tolerance is {settings.failure_tolerance:g} of it):\n{list_failures(recent)}"
        )
    return None


def list_failures(failures: Sequence[Failure]) -> str:
    """Return one line per failure: when (UTC), which member, in which generation, why."""
    return "\n".join(
        f"  {utc_text(failure.at)} {failure.member} ({_workers(failure)}) in generation {failure.generation}: "
        f"{failure.reason}"
        for failure in failures
    )


def still_count(
    settings: ElasticSettings, generation: Generation, failures: Sequence[Failure], wall: float
) -> tuple[Failure, ...]:
    """Return the failures that the next generation must remember.

    These are the failures within `failure_window`, and all of a row of failures that goes on.
    """
    row_goes_on = _num_earlier(settings, generation, failures, wall) > 0
    return tuple(
        failure
        for failure in failures
        if row_goes_on or failure.generation == generation.number or failure.at > wall - settings.failure_window
    )


def _workers(failure: Failure) -> str:
    if failure.num_workers == 0:
        return "lives on"
    return f"{failure.num_workers} worker{'s' if failure.num_workers > 1 else ''}"
