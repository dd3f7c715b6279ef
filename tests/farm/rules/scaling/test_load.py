"""Which pool what waits is for, how much that is, and capacity by the clock."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtf_lightning.farm.rules.needs import Need
from dtf_lightning.farm.rules.scaling.load import OtherWorker, PoolShape, WaitingShape, loads_of
from dtf_lightning.farm.rules.scaling.observation import PoolLimits
from dtf_lightning.farm.rules.scaling.windows import DAYS, limits_at, window_of

CPU = PoolShape(name="cpu", devices={"cpu": 4, "memory": 8000}, cost=2.0, maximum=3)
GPU = PoolShape(name="gpu", devices={"cpu": 8, "gpu": 1}, maximum=3)
DEAR = PoolShape(name="dear", devices={"cpu": 4, "memory": 64000}, cost=9.0, maximum=8)
POOLS = (GPU, DEAR, CPU)


def need(**amounts: float) -> Need:
    return Need(amounts=amounts)


@pytest.mark.parametrize(
    ("needs", "gang", "pool", "share"),
    [
        ((need(cpu=1),), 1, "cpu", 0.25),  # not the one with a gpu, though it costs nothing
        ((need(cpu=3),), 1, "cpu", 1.0),  # no second one fits beside it
        ((need(cpu=1, memory=16000),), 1, "dear", 0.25),
        ((need(gpu=1),), 1, "gpu", 1.0),
        ((need(tpu=1), need(gpu=0.5)), 1, "gpu", 0.5),
        ((Need(amounts={"cpu": 1}, exclusive=True),), 1, "cpu", 1.0),
        ((need(cpu=1),), 5, "dear", 0.25),  # the cheap one may not have as many
    ],
)
def test_the_pool_that_a_task_is_for(needs, gang, pool, share):
    waiting = WaitingShape(needs=needs, gang=gang, number=3, seconds=300.0, oldest=7.0, task="t")
    found, unserved = loads_of(POOLS, [waiting], [])
    assert [name for name, load in found.items() if load.waiting] == [pool]
    load = found[pool]
    assert (load.waiting, load.backlog, load.oldest) == (3, pytest.approx(300.0 * share * gang), 7.0)
    assert (load.width, load.widest) == (pytest.approx(3 * share * gang), gang if gang > 1 else share)
    assert unserved == []


@pytest.mark.parametrize(
    ("wanted", "pools", "reason"),
    [
        (WaitingShape(needs=(need(tpu=1),), task="t"), POOLS, "the nearest pool, gpu, lacks 1 x tpu (it has 0)"),
        (
            WaitingShape(needs=(need(gpu=1),), gang=4, task="t"),
            POOLS,
            "it needs 4 workers at once, and no pool that could do it may have as many",
        ),
        (WaitingShape(needs=(need(cpu=1),), task="t"), (), "there is no pool"),
    ],
)
def test_what_no_pool_could_do(wanted, pools, reason):
    assert [one.reason for one in loads_of(pools, [wanted], [])[1]] == [reason]
    if not wanted.needs[0].amounts.get("gpu"):
        able = OtherWorker(devices={"cpu": 1, "tpu": 1})
        assert loads_of(pools, [wanted], [able])[1] == []  # it waits for that one


def test_workers_beside_count_by_what_they_can_do():
    waiting = [WaitingShape(needs=(need(cpu=1),), task="t")]
    others = [OtherWorker(devices={"cpu": 8}), OtherWorker(devices={"cpu": 2}), OtherWorker(devices={"gpu": 1})]
    assert loads_of(POOLS, waiting, others)[0]["cpu"].beside == pytest.approx(2.5)


@settings(max_examples=40)
@given(
    days=st.sets(st.sampled_from(DAYS), min_size=1),
    begin=st.integers(0, 1439),
    end=st.integers(0, 1439),
    at=st.integers(0, 20_000),
)
def test_a_window_as_minute_by_minute(days, begin, end, at):
    """From each of its days' beginnings on, until the next time that the clock shows its end."""
    window = window_of(f"{','.join(sorted(days))} {begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02} max=1")
    moment = datetime(2026, 1, 5, tzinfo=UTC) + timedelta(minutes=at)  # a Monday
    holds = False
    for back in range((end - begin) % 1440 or 1440):
        before = moment - timedelta(minutes=back)
        holds = holds or (before.hour * 60 + before.minute == begin and DAYS[before.weekday()] in days)
    assert window.holds(moment) is holds


def test_the_last_window_counts():
    windows = [
        window_of("mon-fri 08:00-18:00 min=4 max=8"),
        window_of("wed 12:00-13:00 max=2"),
        window_of("fri-mon 00:00-24:00 min=1"),
    ]
    limits = PoolLimits(minimum=0, maximum=5)
    found = [
        limits_at(limits, windows, datetime(2026, 1, *at, tzinfo=UTC)) for at in ((5, 8), (7, 12), (7, 20), (10, 3))
    ]
    assert [(one.minimum, one.maximum) for one in found] == [(1, 8), (2, 2), (0, 5), (1, 5)]


@pytest.mark.parametrize(
    "text", ["", "mon 8:00-9:00 min=1", "mon-fre 08:00-09:00 min=1", "mon 08:00-25:00 min=1", "mon 08:00-09:00"]
)
def test_no_window(text):
    with pytest.raises(ValueError, match="expected"):
        window_of(text)
