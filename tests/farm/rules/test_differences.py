"""What tells two requests apart."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.rules.submissions.differences import CHARACTERS, SHOWN, differences, sentence

values = st.one_of(st.integers(), st.text(max_size=3), st.dictionaries(st.text(max_size=2), st.integers(), max_size=2))
requests = st.dictionaries(st.sampled_from("abc"), values, max_size=3)


@given(requests, requests)
def test_none_for_equal_ones_only(before, now):
    """But that an empty mapping is as none: a field that has its default is not there."""
    full = [{name: value for name, value in one.items() if value != {}} for one in (before, now)]
    assert (differences(*full) == []) == (full[0] == full[1])


def test_by_field_and_by_variable():
    before = {"command": ["make"], "environment": {"A": "1", "B": "2"}}
    now = {"command": ["make", "all"], "environment": {"A": "1", "B": "3"}, "priority": 3}
    told = differences(before, now)
    assert told == [
        "command was ['make'], now it is ['make', 'all']",
        "environment.B was '2', now it is '3'",
        "priority was not given, now it is 3",
    ]
    assert sentence(told) == "; ".join(told)


def test_bounded():
    told = differences({}, {str(number): "x" * 1000 for number in range(10)})
    assert max(map(len, told)) < CHARACTERS + 40
    assert sentence(told).endswith(f"; and {10 - SHOWN} more")
