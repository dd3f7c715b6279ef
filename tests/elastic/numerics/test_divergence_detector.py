"""The detector: false alarms, detection, every kind, exact state."""

from __future__ import annotations

import itertools
import json
import math
import random
from dataclasses import fields, replace
from pathlib import Path

import pytest

from dtf_lightning.elastic.numerics.divergence_detector import DivergenceDetector, DivergenceKind, DivergenceSettings
from dtf_lightning.elastic.testkit import loss_curves
from dtf_lightning.errors import SettingsError

SETTINGS = DivergenceSettings()
DOCS = Path(__file__).parents[3] / "docs"


def feed(detector, values, start=0):
    return next((found for step, value in enumerate(values, start) if (found := detector.observe(value, step))), None)


def test_the_table_of_the_docs():
    """40 curves of each of 5 shapes, as printed into docs/checkpoints-and-divergence.md: no false alarm, 95 % found."""
    rows = list(loss_curves.table(40))
    assert sum(row.num_curves for row in rows) == 200
    assert [row.false_alarms for row in rows] == [0] * len(rows)
    page = (DOCS / "checkpoints-and-divergence.md").read_text()
    for row in rows:
        line = f"| {row.shape} | {row.num_curves} | {row.false_alarms} | {row.spikes:.1%} | {row.drifts:.1%} |"
        assert line in page, "the page is old: python docs/divergence_table.py --write"
    for row in rows:
        assert row.spikes >= 0.95, row
        assert row.drifts >= 0.95, row


def test_no_false_alarm_on_other_seeds():
    """Seeds that no threshold was chosen on."""
    alarms = {
        (shape, seed): at
        for shape in loss_curves.SHAPES
        for seed in range(1000, 1015)
        if (at := loss_curves.alarm(loss_curves.clean(shape, seed), SETTINGS)) is not None
    }
    assert alarms == {}


def test_spike():
    """From 2.8 to 8.0: decided at the third observation, with the counts and the onset."""
    detector = DivergenceDetector()
    assert feed(detector, [2.8] * 60) is None
    found = feed(detector, [8.0] * 10, start=60)
    assert found is not None
    assert (found.kind, found.onset, found.step, found.value) == (DivergenceKind.SPIKE, 60, 62, 8.0)
    assert "3 in a row more than 6 scales" in found.reason


def test_a_lone_outlier_is_no_spike():
    detector = DivergenceDetector()
    assert feed(detector, [*([2.8] * 60), 50.0, 50.0, 2.8, 50.0, 2.8]) is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_non_finite(value, mode):
    """From the first observation on, in both modes."""
    found = DivergenceDetector(DivergenceSettings(mode=mode)).observe(value, 7)
    assert found is not None
    assert (found.kind, found.onset) == (DivergenceKind.NON_FINITE, 7)


def test_non_finite_patience():
    """One NaN is forgiven (a loss scaler skips that step), two in a row are not."""
    detector = DivergenceDetector(DivergenceSettings(non_finite_patience=2))
    assert feed(detector, [math.nan, 1.0, math.nan, 1.0]) is None
    assert detector.is_calm
    found = feed(detector, [math.inf, math.nan], start=10)
    assert found is not None
    assert found.onset == 10


def test_drift():
    """A slow rise that the rolling median follows, so that it is no spike."""
    detector = DivergenceDetector()
    found = feed(detector, [*([1.0] * 100), *(1 + 0.01 * step for step in range(200))])
    assert found is not None
    assert found.kind is DivergenceKind.DRIFT
    assert 140 <= found.onset <= found.step <= 160
    assert "best level 1" in found.reason


def test_drift_can_be_turned_off():
    detector = DivergenceDetector(DivergenceSettings(drift_limit=0))
    assert feed(detector, [*([1.0] * 100), *(1 + 0.01 * step for step in range(200))]) is None


def test_higher_is_better():
    """Accuracy: rising is fine however fast, falling is not."""
    settings = DivergenceSettings(mode="max", window=20, warm_up=2, patience=2)
    assert feed(DivergenceDetector(settings), [0.1, 0.5, 0.9, 0.99, 0.99]) is None
    found = feed(DivergenceDetector(settings), [0.1, 0.5, 0.9, 0.91, 0.92, 0.92, 0.92, 0.93, 0.1, 0.1])
    assert found is not None
    assert found.step == 9
    assert "0.91" in found.reason or "0.92" in found.reason


def test_metrics_around_zero():
    """The least scale in the metric's own unit."""
    random_ = random.Random(0)
    values = [random_.gauss(0, 1e-6) for _ in range(200)] + [1e-3] * 5
    assert feed(DivergenceDetector(DivergenceSettings(absolute_scale=1e-3)), values) is None
    assert feed(DivergenceDetector(), values) is not None


def test_recover_keeps_what_is_normal():
    """After a rollback the same spike is seen again, at once."""
    detector = DivergenceDetector()
    feed(detector, [2.8] * 60)
    assert feed(detector, [8.0] * 3) is not None
    detector.recover()
    assert detector.is_calm
    assert feed(detector, [2.8, 8.0, 8.0]) is None
    assert feed(detector, [8.0]) is not None


@pytest.mark.parametrize("shape", loss_curves.SHAPES)
@pytest.mark.parametrize("settings", [SETTINGS, DivergenceSettings(window=20, warm_up=20, patience=1)])
def test_state_at_any_step(shape, settings):
    """Saved as JSON and loaded at every 37th step: the same decision at the same step, the same state at the end."""
    curve = loss_curves.with_drift(shape, 3, 12, 60, settings).losses
    whole, parts = DivergenceDetector(settings), DivergenceDetector(settings)
    for step, loss in enumerate(curve):
        if step % 37 == 0:
            state = json.loads(json.dumps(parts.state_dict()))
            parts = DivergenceDetector(settings)
            parts.load_state_dict(state)
        found = whole.observe(loss, step)
        assert parts.observe(loss, step) == found
        if found:
            break
    assert repr(parts.state_dict()) == repr(whole.state_dict())


def test_a_shorter_window_takes_an_older_state():
    """The setting was changed between two runs."""
    long, short = DivergenceDetector(), DivergenceDetector(DivergenceSettings(window=20))
    feed(long, [float(step) for step in range(100, 0, -1)])
    short.load_state_dict(long.state_dict())
    assert short.state_dict()["values"] == [float(step) for step in range(20, 0, -1)]
    assert feed(short, [0.5] * 50) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": "down"}, {"window": 1}, {"warm_up": 0}, {"patience": 0}, {"non_finite_patience": 0}, {"spike": 0.0},
        {"spike": math.nan}, {"drift_slack": -1.0}, {"drift_limit": -1.0}, {"relative_scale": -0.1},
        {"absolute_scale": 0.0}, {"window": 10, "warm_up": 11},
    ],
)  # fmt: skip
def test_settings_are_checked(wrong):
    with pytest.raises(SettingsError, match=next(reversed(wrong))):
        replace(SETTINGS, **wrong)


def test_every_setting_has_its_docstring():
    import inspect

    source = inspect.getsource(DivergenceSettings)
    for this, following in itertools.pairwise([*fields(DivergenceSettings), None]):
        part = source.partition(f"    {this.name}: ")[2]
        if following is not None:
            part = part.partition(f"    {following.name}: ")[0]
        assert '"""' in part, this.name
