"""Decides whether the workers of a generation have stopped apart: one left the training loop, another trains on.

A worker that begins a step which another does not begin waits for it in a collective, and the other waits for the end of
training: both for ever. Boundaries tell it from a worker that is slow: all members of a generation pass the same ones
(see `membership.py`), so that nobody who is right ever passes more of them than one that has stopped.
"""

from __future__ import annotations

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
    boundary, first = min(stops, key=lambda stop: stop[0])
    ahead = [r.member_id for r in records if r.passed is not None and r.passed[0] == number and r.passed[1] > boundary]
    if not ahead:
        return None
    return (
        f"workers of generation {number} stopped apart: {first.member_id} stopped ({first.stopped_why}), but "
        f"{', '.join(ahead)} began another step, for which it would wait for ever. All workers must stop at the same step: "
        "decide it from a value that all have (self.log(..., sync_dist=True) for EarlyStopping, "
        "trainer.strategy.broadcast(...) or reduce_boolean_decision(...) for trainer.should_stop), or write "
        'ElasticCallback(stop="any"), with which all stop where the first one does'
    )
