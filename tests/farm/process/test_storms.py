"""Storms over whole farms: three etcd members, three coordinators, real and simulated workers, faults of every kind."""

from __future__ import annotations

import pytest

from dtf_lightning.farm.testkit.faults import FaultKind
from dtf_lightning.farm.testkit.local_farm import FarmShape
from dtf_lightning.farm.testkit.storm import StormSettings, play_storm

pytestmark = pytest.mark.process


def test_a_short_one(tmp_path):
    """Every kind of fault once, within ten seconds; tasks come all along. Nothing that was accepted is lost."""
    settings = StormSettings(
        seed=5,
        num_faults=len(FaultKind),
        num_tasks=300,
        num_real=20,
        pause=0.6,
        longest_fault=4.5,
        longest_task=0.6,
        shape=FarmShape(crowds=2, worker_grace=2.0),
    )
    report = play_storm(tmp_path / "farm", settings)
    assert report.problems == []
    orders = report.books.accepted.values()
    assert len({order.number for order in orders}) == 300
    assert {order.gang > 1 for order in orders} == {order.array > 0 for order in orders} == {True, False}
    assert report.books.used_again > 0
    assert report.books.executed_again > 0, "the storm disturbed nothing"
    assert sum(report.faults.values()) >= len(FaultKind) - 1  # one may find nobody who leads


@pytest.mark.chaos
@pytest.mark.parametrize("seed", range(1, 9))
def test_one_of_a_minute(tmp_path, seed):
    report = play_storm(tmp_path / "farm", StormSettings(seed=seed, num_faults=40))
    assert report.problems == []


@pytest.mark.chaos
def test_a_long_one(tmp_path):
    """300 faults, 20,000 tasks."""
    settings = StormSettings(seed=2026, num_faults=300, num_tasks=20_000, num_real=500)
    report = play_storm(tmp_path / "farm", settings)
    assert report.problems == []
    assert len({order.number for order in report.books.accepted.values()}) == 20_000
    assert sum(report.faults.values()) >= 295
