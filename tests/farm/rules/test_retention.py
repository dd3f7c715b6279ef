"""Which files of a farm may go."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.rules.retention import YOUNG, Keep, StoredThing, may_go

NOW = 1e6


def thing(name, size=1, age=2 * YOUNG):
    return StoredThing(name=name, size=size, used=NOW - age)


def gone(things, age=1e9, total=None, needed=()):
    return may_go(things, Keep(age=age, total=total), needed=needed, now=NOW)


def test_by_age():
    assert gone([thing("young", age=4000), thing("old", age=9000)], age=8000) == ["old"]


def test_by_total():
    """The oldest go until the others fit."""
    things = [thing("c", 5, 5000), thing("a", 5, 9000), thing("b", 5, 7000)]
    assert gone(things, total=10) == ["a"]
    assert gone(things, total=9) == ["a", "b"]
    assert gone(things, total=0) == ["a", "b", "c"]


def test_what_a_live_task_needs_stays():
    """Also where it alone is more than the total."""
    assert gone([thing("needed", 100, 1e5), thing("other")], age=10, total=10, needed={"needed"}) == ["other"]


def test_what_came_a_moment_ago_stays():
    assert gone([thing("fresh", 100, YOUNG - 1)], age=1, total=0) == []


THINGS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 10_000)), max_size=12)


@given(
    things=THINGS, age=st.integers(1, 10_000), total=st.none() | st.integers(0, 300), needed=st.sets(st.integers(0, 11))
)
def test_as_one_would_do_it_by_hand(things, age, total, needed):
    """One after the other, oldest first, looking at all of them anew each time."""
    left = [thing(str(number), size, old) for number, (size, old) in enumerate(things)]
    names = {str(number) for number in needed}
    by_hand = []
    while True:
        too_much = total is not None and sum(one.size for one in left) > total
        candidates = [
            one
            for one in left
            if one.name not in names and NOW - one.used >= YOUNG and (too_much or NOW - one.used > age)
        ]
        if not candidates:
            break
        first = min(candidates, key=lambda one: (one.used, one.name))
        by_hand.append(first.name)
        left.remove(first)
    assert sorted(gone([thing(str(n), s, a) for n, (s, a) in enumerate(things)], age, total, names)) == sorted(by_hand)
