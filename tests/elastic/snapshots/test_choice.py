"""Which state all workers go on with."""

from __future__ import annotations

import pytest

from dtf_lightning.elastic.rules.resume import LoopPhase, Position
from dtf_lightning.elastic.snapshots.choice import Offer, SourceKind, choose, senders

SNAPSHOT, LOADED, CHECKPOINT = SourceKind.SNAPSHOT, SourceKind.LOADED, SourceKind.CHECKPOINT


def offer(rank: int, kind: SourceKind, step: int, **more) -> Offer:
    return Offer(rank=rank, kind=kind, position=Position(global_step=step, **more))


def test_the_newest_wins_wherever_it_lies():
    """A checkpoint beats an older snapshot, a snapshot a younger checkpoint, and what was loaded an older snapshot."""
    for newest in SourceKind:
        others = [kind for kind in SourceKind if kind is not newest]
        offers = [offer(1, newest, 9), *(offer(0, kind, 8) for kind in others)]
        assert choose(offers).kind is newest
        assert [one.rank for one in choose(offers).offers] == [1]


def test_at_one_step_the_exact_place_decides():
    """Survivors may be at the end of a step whose batch others count already; a snapshot before a checkpoint."""
    early = Position(global_step=5, batches_total=5, phase=LoopPhase.ADVANCE_END)
    late = Position(global_step=5, batches_total=5, phase=LoopPhase.BATCH)
    offers = [Offer(rank=rank, kind=SNAPSHOT, position=position) for rank, position in enumerate((early, late))]
    assert choose(offers).position == late
    assert choose([offer(0, CHECKPOINT, 5), offer(0, SNAPSHOT, 5), offer(0, LOADED, 5)]).kind is SNAPSHOT


def test_all_who_have_it_hold_it():
    """One offer per rank, whoever says it first; whether a process has trained does not count."""
    offers = [offer(2, SNAPSHOT, 5), offer(0, SNAPSHOT, 5, trained=True), offer(1, SNAPSHOT, 4), offer(0, SNAPSHOT, 5)]
    choice = choose(offers)
    assert [one.rank for one in choice.offers] == [0, 2]
    assert choice.offer_of(1) is None
    assert choice.offer_of(2) == offers[0]


def test_no_offer():
    with pytest.raises(ValueError, match="no offer"):
        choose([])


def test_who_sends_to_whom():
    """From the own host if somebody there has it, else spread evenly."""
    hosts = ["a", "a", "b", "b", "c", "d"]
    assert senders([0, 2], hosts) == {1: 0, 3: 2, 4: 0, 5: 2}
    assert senders([5], hosts) == dict.fromkeys(range(5), 5)
    assert senders(range(6), hosts) == {}
