"""A project's quota of pending tasks, against counting one by one."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.rules.submissions.room import why_no_room

counts = st.integers(0, 8)


@given(counts, counts, counts)
def test_as_if_they_came_one_by_one(pending, new, most):
    there, refused = pending, 0
    for _ in range(new):
        if most and there >= most:
            refused += 1
        there += 1
    why = why_no_room("p", pending=pending, new=new, most=most)
    assert bool(why) == bool(refused)
    if why:
        told = [int(number) for number in re.findall(r"\d+", why)]
        assert told == [most, pending, new, pending + new - most]
