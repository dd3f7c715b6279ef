"""What a storm does is a pure function of its seed."""

from __future__ import annotations

import pytest

from dtf_lightning.farm.testkit.faults import LASTS, FaultKind, plan_faults
from dtf_lightning.farm.testkit.orders import Character, command, plan_orders
from dtf_lightning.farm.testkit.storm import _GROUP, _parser, _settings


@pytest.mark.parametrize("seed", range(20))
def test_every_kind_comes_before_any_comes_again(seed):
    faults = plan_faults(seed, 3 * len(FaultKind))
    assert faults == plan_faults(seed, 3 * len(FaultKind))
    for start in range(0, len(faults), len(FaultKind)):
        assert {fault.kind for fault in faults[start : start + len(FaultKind)]} == set(FaultKind)
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
    assert all(LASTS[fault.kind][0] <= fault.lasts <= LASTS[fault.kind][1] for fault in faults)


def test_a_longer_storm_begins_like_a_shorter_one():
    assert plan_faults(3, 40)[:13] == plan_faults(3, 13)
    assert plan_faults(3, 13) != plan_faults(4, 13)
    assert max(fault.lasts for fault in plan_faults(3, 100, longest=1.0)) == 1.0


def test_every_kind_hits_something():
    assert _GROUP.keys() == LASTS.keys() == set(FaultKind)


def test_orders():
    """Of one seed the same; each number once; every character, for both kinds of workers; behind others of its batch only."""
    batches = plan_orders(1, 2000, batch=30, longest=1.0, num_real=500)
    assert batches == plan_orders(1, 2000, batch=30, longest=1.0, num_real=500)
    orders = [order for batch in batches for order in batch]
    assert [order.number for order in orders] == list(range(2000))
    assert sum(order.real for order in orders) == 500
    assert {(order.character, order.real) for order in orders} == {
        (character, real) for character in Character for real in (True, False)
    }
    for batch in batches:
        assert 1 <= len(batch) <= 30
        for order in batch:
            assert order.after is None or batch[0].number <= order.after < order.number
    assert sum(order.after is not None for order in orders) > 50 < sum(order.twice for order in orders)
    assert all(command(order, "/runs")[0] == ("sh" if order.real else "simulate") for order in orders)


def test_the_command_line():
    """As docs/farm.md has it, and with everything said."""
    told = _settings(_parser().parse_args(["--seed", "7", "--faults", "30", "--tasks", "2000"]))
    assert (told.seed, told.num_faults, told.num_tasks, told.num_real) == (7, 30, 2000, 66)
    told = _settings(_parser().parse_args(["--pause", "0.5", "--longest", "0.2", "--folder", "x"]))
    assert (told.pause, told.longest_task) == (0.5, 0.2)
