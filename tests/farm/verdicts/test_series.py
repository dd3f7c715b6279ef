"""Bad input is refused where it enters, with what to do."""

from __future__ import annotations

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.verdicts.discoveries import discoveries
from dtf_lightning.farm.verdicts.series import Series, percent


@pytest.mark.parametrize(
    ("values", "unit", "message"),
    [
        ([1.0, 2.0], None, "'latency' has no unit.*say one of ns, us"),
        ([1.0, 2.0], "", "has no unit"),
        ([1.0, 2.0], "parsec", "unknown unit 'parsec'; known are"),
        ([1.0, float("nan")], "ms", "value 2 of the metric 'latency' is nan.*leave runs out"),
        ([float("inf"), 1.0], "ms", "value 1 of the metric 'latency' is inf"),
        ([1.0, 0.0], "ms", "value 2 of the metric 'latency' is 0; expected more than 0"),
        ([1.0, -3.0], "ms", "is -3; expected more than 0"),
        ([1.0], "ms", "has 1 value; at least 2 are needed to know its noise"),
        ([1.0, 2.0], ["ms", "MiB"], "values in 'ms' and 'MiB', which measure different things"),
        ([1.0, 2.0], ["ms", None], "has no unit"),
        ([1.0, 2.0], ["ms"], "has 2 values and 1 units"),
    ],
)
def test_bad_values_are_refused(values, unit, message):
    with pytest.raises(SettingsError, match=message):
        Series.of("latency", values, unit)


def test_units_are_normalised():
    """Milliseconds beside seconds are one series; rates are better when higher."""
    series = Series.of("latency", [250.0, 0.25, 250_000.0], ["ms", "s", "us"])
    assert series.values == pytest.approx((0.25, 0.25, 0.25))
    assert (series.unit, series.higher_is_better) == ("s", False)
    rate = Series.of("throughput", [60.0, 2.0], ["1/min", "1/s"])
    assert rate.values == pytest.approx((1.0, 2.0))
    assert rate.costs[1] < rate.costs[0]
    assert Series.of("throughput", [1.0, 2.0], "1/s", higher_is_better=False).costs[1] > 0
    assert percent(0.0487902) == pytest.approx(5, abs=1e-4)


def test_benjamini_hochberg_of_the_textbook():
    """The example of Benjamini and Hochberg (1995, section 3.2): four of fifteen."""
    p_values = [.0001, .0004, .0019, .0095, .0201, .0278, .0298, .0344, .0459, .3240, .4262, .5719, .6528, .7590, 1.0]  # fmt: skip
    found = discoveries(p_values)
    assert found.told == (True,) * 4 + (False,) * 11
    assert (found.num_tested, found.threshold, found.warning) == (15, 0.0095, "")
    assert discoveries([]).told == ()
    assert discoveries([0.9, 0.8]).told == (False, False)
    for bad in (float("nan"), -0.1, 1.1):
        with pytest.raises(SettingsError, match="a p-value lies between 0 and 1"):
            discoveries([0.5, bad])
