"""What follows from the size of etcd's database."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.rules.quota import RARELY, DatabaseSize, Step, ids_refusal, judge_size, may_disarm

QUOTA = 1000 << 20


def judged(file, in_use, *, alarm=False, since=math.inf):
    return judge_size(
        DatabaseSize(file=int(file * QUOTA), in_use=int(in_use * QUOTA), alarm=alarm), QUOTA, since_defragmented=since
    )


@pytest.mark.parametrize(
    ("file", "in_use", "since", "refused", "steps"),
    [
        (0.4, 0.1, math.inf, False, ()),
        (0.5, 0.4, math.inf, False, ()),
        (0.5, 0.2, math.inf, False, (Step.DEFRAGMENT,)),
        (0.5, 0.2, RARELY - 1, False, ()),
        (0.75, 0.7, math.inf, True, (Step.DEFRAGMENT,)),
        (0.9, 0.1, RARELY - 1, True, ()),
        (0.9, 0.9, math.inf, True, ()),
    ],
)
def test_table(file, in_use, since, refused, steps):
    verdict = judged(file, in_use, since=since)
    assert (bool(verdict.refusal), verdict.steps) == (refused, steps)


def test_the_reason_has_the_figures():
    assert judged(0.8, 0.7).refusal == (
        "etcd's database is three quarters full (its file has 800.0 MiB of a quota of 1000.0 MiB, 700.0 MiB of it in use)"
    )


def test_the_alarm():
    """It refuses whatever the size, and goes off last, where there is room."""
    verdict = judged(0.1, 0.1, alarm=True, since=0.0)
    assert verdict.refusal.startswith("etcd has raised its alarm for space (")
    assert verdict.steps == (Step.COMPACT, Step.DEFRAGMENT, Step.DISARM)
    assert may_disarm(DatabaseSize(file=QUOTA // 2, in_use=0, alarm=True), QUOTA)
    assert not may_disarm(DatabaseSize(file=QUOTA, in_use=0, alarm=True), QUOTA)


@given(file=st.floats(0, 2), used=st.floats(0, 1), alarm=st.booleans(), since=st.floats(0, 1e6))
def test_what_always_holds(file, used, alarm, since):
    """Refused from three quarters on, and below that only under the alarm; a verdict changes nothing without a reason."""
    verdict = judged(file, file * used, alarm=alarm, since=since)
    assert bool(verdict.refusal) == (alarm or int(file * QUOTA) >= 0.75 * QUOTA)
    assert (Step.DISARM in verdict.steps) == alarm
    if not alarm and since < RARELY:
        assert verdict.steps == ()


def test_ids_that_do_not_fit():
    """Six million tasks a week fill half of the usual quota with ids; what to set is said, and fits then."""
    quota, week = 2048 << 20, 7 * 86400.0
    rate = 6e6 / week
    told = ids_refusal(rate, week + 86400, quota)
    assert "6.9 million ids of some 200 bytes: 1308 MiB of a quota of 2048 MiB" in told
    assert "Set `retention.tombstones` to 6.3 days or less" in told
    assert "a quota of 2616 MiB (`--quota-backend-bytes`, at most 8 GiB)" in told
    assert ids_refusal(rate, 6.2 * 86400, quota) == ""
    assert ids_refusal(rate, week + 86400, 2620 << 20) == ""
