"""Where a worker stands, as a value."""

from __future__ import annotations

from dataclasses import replace

from dtf_lightning.elastic.lightning.run.world import World
from dtf_lightning.elastic.rules.generation import Generation, Member

MEMBERS = (Member(node="a", incarnation=1, num_workers=2), Member(node="b", incarnation=3, num_workers=1))
WORLD = World(generation=Generation(number=1, members=MEMBERS), rank=0, size=3, formed=True)


def test_workers_by_rank() -> None:
    """For life (a node that comes back is another), and as events and reports name them."""
    assert WORLD.workers == ("a#1/0", "a#1/1", "b#3/0")
    assert WORLD.sources == ("a/0", "a/1", "b/0")


def test_nobody_is_somebody_before_a_world_is_formed() -> None:
    """Ranks are provisional in set-up."""
    assert replace(WORLD, formed=False).workers == ()
