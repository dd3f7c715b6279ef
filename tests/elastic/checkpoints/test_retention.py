"""Policies: ties, missing, NaN and infinite metrics, several monitors, suspects."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.elastic.checkpoints.record import Record
from dtf_lightning.elastic.checkpoints.retention import AnyOf, BestN, EveryNSteps, LatestN
from dtf_lightning.errors import SettingsError


def records(*losses: float | None, **more: list[float]) -> list[Record]:
    return [
        Record(
            name=f"c{serial}",
            serial=serial,
            step=serial * 10,
            metrics={
                **({} if loss is None else {"loss": loss}),
                **{name: values[serial - 1] for name, values in more.items()},
            },
        )
        for serial, loss in enumerate(losses, start=1)
    ]


@pytest.mark.parametrize(
    ("losses", "mode", "kept"),
    [
        ([3.0, 1.0, 2.0], "min", {"c2", "c3"}),
        ([3.0, 1.0, 2.0], "max", {"c1", "c3"}),
        ([1.0, 1.0, 1.0], "min", {"c1", "c2"}),  # of equal ones the older
        ([1.0, 1.0, 1.0], "max", {"c1", "c2"}),
        ([math.nan, 2.0, None], "min", {"c2"}),  # NaN and missing are never best
        ([math.nan, math.nan, None], "min", set()),
        ([-math.inf, 2.0, 1.0], "min", {"c2", "c3"}),  # a loss of -inf is no triumph
        ([math.inf, 2.0, 1.0], "max", {"c2", "c3"}),
    ],
)
def test_best(losses, mode, kept):
    assert BestN(2, "loss", mode).keep(records(*losses)) == kept


def test_latest_is_by_order_of_saving_not_by_step():
    """After a rollback the step goes back, the serial does not."""
    old = Record(name="old", serial=1, step=100)
    new = Record(name="new", serial=2, step=50)
    assert LatestN(1).keep([new, old]) == {"new"}


def test_every_n_steps():
    assert EveryNSteps(20).keep(records(1, 2, 3, 4)) == {"c2", "c4"}


def test_several_monitors():
    """The union of each one's best and of the last."""
    saved = records(1.0, 2.0, 3.0, 4.0, accuracy=[0.1, 0.9, 0.2, 0.3])
    policy = AnyOf((BestN(1, "loss"), BestN(1, "accuracy", "max"), LatestN(1)))
    assert policy.keep(saved) == {"c1", "c2", "c4"}


def test_suspects_are_never_best_and_last_to_be_latest():
    good, bad = (
        Record(name="good", serial=1, step=1, metrics={"loss": 5.0}),
        Record(name="bad", serial=2, step=2, metrics={"loss": 1.0}, suspect=True),
    )
    assert BestN(1, "loss").keep([good, bad]) == {"good"}
    assert LatestN(1).keep([good, bad]) == {"good"}
    assert LatestN(2).keep([good, bad]) == {"good", "bad"}


@pytest.mark.parametrize("make", [lambda: BestN(-1, "x"), lambda: LatestN(-1), lambda: EveryNSteps(0)])
def test_counts_are_checked(make):
    with pytest.raises(SettingsError):
        make()


def test_mode_is_checked():
    with pytest.raises(SettingsError, match="'min'"):
        BestN(1, "x", "lowest")


@given(st.lists(st.one_of(st.none(), st.floats()), max_size=12), st.integers(0, 4), st.integers(0, 4))
def test_at_most_n_plus_m_and_the_best_is_among_them(losses, best, recent):
    """Whatever the metrics: bounded, the best finite one is kept, and so is the last."""
    saved = records(*losses)
    kept = AnyOf((BestN(best, "loss"), LatestN(recent))).keep(saved)
    assert len(kept) <= best + recent
    finite = [record for record in saved if record.metric("loss") is not None]
    if best and finite:
        assert min(finite, key=lambda record: (record.metric("loss"), record.serial)).name in kept
    if recent and saved:
        assert saved[-1].name in kept


@given(st.dictionaries(st.text(max_size=5), st.floats(), max_size=4))
def test_a_record_survives_json(metrics):
    """NaN and infinities too, which JSON does not know."""
    import json

    record = Record(name="a", serial=1, step=2, metrics=metrics)
    again = Record.from_json(json.loads(json.dumps(record.to_json(), allow_nan=False)))
    assert repr(again) == repr(record)
