"""From old to new world, in one word and in one line."""

from __future__ import annotations

import pytest

from dtf_lightning.elastic.rules.generation import Generation, Member
from dtf_lightning.elastic.rules.rescale import compare


def world(names: str) -> tuple[Member, ...]:
    return tuple(Member(node=name, incarnation=1, num_workers=2) for name in names)


@pytest.mark.parametrize(
    ("old", "new", "failed", "broken", "kind", "text"),
    [
        ("ab", "abc", "", False, "join", "c#1 joined: 2 -> 3 nodes, 6 workers"),
        ("abc", "ac", "", False, "leave", "b#1 left: 3 -> 2 nodes, 4 workers"),
        ("abc", "ac", "b", True, "failure", "b#1 failed: 3 -> 2 nodes, 4 workers"),
        ("abc", "acd", "b", True, "mixed", "d#1 joined, b#1 failed: 3 -> 3 nodes, 6 workers"),
        ("abc", "ad", "b", False, "mixed", "d#1 joined, c#1 left, b#1 failed: 3 -> 2 nodes, 4 workers"),
        ("ab", "ab", "", True, "failure", "reported as broken, same members: 2 -> 2 nodes, 4 workers"),
        ("ab", "ab", "", False, "mixed", "same members: 2 -> 2 nodes, 4 workers"),
        ("ab", "a", "", True, "leave", "b#1 left: 2 -> 1 nodes, 2 workers"),
    ],
)
def test_kind_and_text(old, new, failed, broken, kind, text):
    """What changed decides the kind; nothing but a broken world is a failure too."""
    rescale = compare(
        Generation(number=4, members=world(old)), world(new), failed={f"{name}#1" for name in failed}, broken=broken
    )
    assert (rescale.kind, rescale.text) == (kind, text)


def test_the_first():
    """There is nothing before it."""
    rescale = compare(Generation(number=0), world("ab"))
    assert (rescale.kind, rescale.text) == ("start", "a#1, b#1 joined: 0 -> 2 nodes, 4 workers")


def test_roles():
    """Survivors in rank order, joiners, leavers and failed are told apart by id, not by node."""
    again = Member(node="b", incarnation=2, num_workers=2)
    rescale = compare(Generation(number=1, members=world("abc")), (*world("a"), again), failed={"b#1"})
    assert rescale.survivors == world("a")
    assert rescale.joined == (again,)
    assert rescale.left == world("c")
    assert rescale.failed == world("b")
