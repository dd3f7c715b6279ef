"""Decides whether the workers of a generation have stopped apart: one left the training loop, another trains on.

A worker that begins a batch which another does not begin waits for it in a collective, soon or at the end of an
accumulation, and the other waits for the end of training: both for ever. The number of batches tells it from a worker that
is slow: all members of a generation begin the same ones, so that nobody who is right ever begins more of them than one that
has stopped. In restart mode, where no agent is told, the workers tell each other once one has stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dtf_lightning.elastic.rules.state import MembershipState
from dtf_lightning.elastic.settings import ElasticSettings

MAX_PATIENCE = 5.0
"""Seconds, at most, that workers may stand apart: one that goes on after all withdraws its stop in a few milliseconds."""


def patience(settings: ElasticSettings) -> float:
    """Return the seconds that workers may stand apart before the run ends: less than `rescale_timeout`."""
    return min(MAX_PATIENCE, settings.rescale_timeout / 2)


def stopped_apart(state: MembershipState) -> str | None:
    """Return which live members stand apart, where and why, for people; `None` while none do."""
    number = state.generation.number
    records = [record for member in state.live if (record := state.record(member)) is not None]
    stops = [(r.stopped[1], r) for r in records if r.stopped is not None and r.stopped[0] == number]
    if number == 0 or not stops:
        return None
    batches, first = min(stops, key=lambda stop: stop[0])
    ahead = [r.member_id for r in records if r.passed is not None and r.passed[0] == number and r.passed[1] > batches]
    return _sentence(number, first.member_id, first.stopped_why, ahead) if ahead else None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a worker stands in its life, as it has told the others."""

    passed: int
    """How many places it has passed that all workers of its life pass alike, at least one in each batch."""
    step: int = 0
    """The optimizer steps it had done when it stopped."""
    stopped: str = ""
    """Why it has left the training loop; empty while it trains."""


def first_stop(places: Mapping[int, Place]) -> int | None:
    """Return how many places the worker had passed that stopped first; `None` if all train. `places`: by rank."""
    return min((place.passed for place in places.values() if place.stopped), default=None)


def told_apart(places: Mapping[int, Place], names: Sequence[str], generation: int) -> str | None:
    """Return which workers stand apart by what they have told, where and why, for people; `None` while none do.

    Args:
        places: by rank, of those that have told.
        names: of all workers, by rank.
        generation: the number of the workers' generation.
    """
    passed = first_stop(places)
    if passed is None:
        return None
    first, place = next((rank, one) for rank, one in sorted(places.items()) if one.stopped and one.passed == passed)
    ahead = [f"rank {rank} ({names[rank]})" for rank, one in sorted(places.items()) if one.passed > passed]
    if not ahead:
        return None
    why = f"after step {place.step}: {place.stopped}"
    return _sentence(generation, f"rank {first} ({names[first]})", why, ahead)


def _sentence(number: int, first: str, why: str, ahead: Sequence[str]) -> str:
    return (
        f"workers of generation {number} stopped apart: {first} stopped ({why}), but "
        f"{', '.join(ahead)} began another batch, and would wait for ever. All workers must stop at the same batch: "
        "decide it from a value that all have (self.log(..., sync_dist=True) for EarlyStopping, "
        "trainer.strategy.broadcast(...) or reduce_boolean_decision(...) for trainer.should_stop), or write "
        'ElasticCallback(stop="any"), with which all stop where the first one does'
    )
