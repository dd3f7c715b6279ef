"""How results become one: each rule beside what the undivided job would have given."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.orchestrate.histograms import percentile_of
from dtf_lightning.farm.orchestrate.merging import Part, Rule, UnlikeResults, merge, read_rule

NUMBERS = st.lists(st.integers(-1000, 1000), min_size=1, max_size=40)


def parts(*values, weights=()) -> list[Part]:
    weights = weights or [1] * len(values)
    return [
        Part(name=f"n{number}", weight=weight, value=value)
        for number, (value, weight) in enumerate(zip(values, weights, strict=True))
    ]


def cut(values: list, places: list[int]) -> list[list]:
    """Consecutive pieces, none empty."""
    borders = sorted({place % len(values) for place in places} - {0})
    return [values[low:high] for low, high in zip([0, *borders], [*borders, len(values)], strict=True)]


@settings(max_examples=50)
@given(values=NUMBERS, places=st.lists(st.integers(0, 100), max_size=6))
def test_a_divided_job_gives_what_the_whole_one_gives(values, places):
    pieces = cut(values, places)
    weights = [len(piece) for piece in pieces]
    assert merge(Rule(how="concatenate"), parts(*pieces)) == values
    assert merge(Rule(how="sum"), parts(*map(sum, pieces))) == sum(values)
    assert merge(Rule(how="min"), parts(*map(min, pieces))) == min(values)
    assert merge(Rule(how="max"), parts(*map(max, pieces))) == max(values)
    means = [sum(piece) / len(piece) for piece in pieces]
    mean = sum(values) / len(values)
    assert math.isclose(merge(Rule(how="mean"), parts(*means, weights=weights)), mean, abs_tol=1e-9)
    told = [{"loss": one, "n": weight} for one, weight in zip(means, weights, strict=True)]
    merged = merge(Rule(how="mean", weight="n"), parts(*told))
    assert math.isclose(merged["loss"], mean, abs_tol=1e-9)
    assert merged["n"] == len(values)


@given(
    values=st.lists(st.floats(0, 9.999), min_size=1, max_size=200),
    places=st.lists(st.integers(0, 300), max_size=6),
    percent=st.floats(0, 100),
)
def test_percentiles_of_merged_histograms_are_those_of_all_values(values, places, percent):
    """Within one bin of the value at that rank; of the values themselves exactly."""
    edges = [float(edge) for edge in range(11)]
    pieces = cut(values, places)
    told = []
    for piece in pieces:
        inside = Counter(int(value) for value in piece)
        told.append({"edges": edges, "counts": [inside[low] for low in range(10)]})
    rule = Rule(how="percentiles", at=(percent,))
    merged = merge(rule, parts(*told))
    assert merged["count"] == len(values)
    assert merged["counts"] == [sum(int(value) == low for value in values) for low in range(10)]
    ranked = sorted(values)
    reached = ranked[max(math.ceil(len(values) * percent / 100) - 1, 0)]
    assert abs(merged[f"p{percent:g}"] - reached) <= 1 + 1e-9
    raw = merge(rule, parts(*pieces))
    assert raw == {f"p{percent:g}": percentile_of(values, percent), "count": len(values)}


def test_a_mean_of_percentiles_would_lie():
    """One device has all the slow requests: the mean of its p50 and another's is nobody's p50."""
    fast = {"edges": [0, 1, 100], "counts": [99, 0]}
    slow = {"edges": [0, 1, 100], "counts": [0, 1]}
    assert merge(Rule(how="percentiles", at=(50,)), parts(fast, slow))["p50"] < 1
    with pytest.raises(UnlikeResults, match=r"'n0' gave no histogram .* never of other percentiles"):
        merge(Rule(how="percentiles"), parts({"p50": 3}))


@given(rows=st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=3), min_size=1, max_size=7))
def test_a_vote_is_what_most_have(rows):
    merged = merge(Rule(how="vote"), parts(*rows))
    for place, winner in enumerate(merged):
        column = [row[place] for row in rows]
        most = max(Counter(column).values())
        assert winner == next(value for value in column if column.count(value) == most)


def test_shapes_are_kept():
    told = parts({"a": [1, 2], "b": 1.5}, {"a": [3, 4], "b": 2.5}, weights=[1, 3])
    assert merge(Rule(how="sum"), told) == {"a": [4, 6], "b": 4.0}
    assert merge(Rule(how="mean"), told) == {"a": [2.5, 3.5], "b": 2.25}


def test_best_is_whole():
    told = parts({"model": "a", "loss": 2}, {"model": "b", "loss": 1})
    assert merge(Rule(how="best", by="loss"), told) == {"model": "a", "loss": 2}
    assert merge(Rule(how="best", by="loss", prefer="min"), told) == {"model": "b", "loss": 1}


def test_join():
    assert merge(Rule(how="join"), parts(1, [2])) == {"n0": 1, "n1": [2]}
    rows = parts([{"id": 1, "a": 5}, {"id": 2, "a": 6}], [{"id": 2, "b": 7}, {"id": 1, "b": 8, "a": 5}])
    assert merge(Rule(how="join", by="id"), rows) == [{"id": 1, "a": 5, "b": 8}, {"id": 2, "a": 6, "b": 7}]


def test_each_field_by_its_own_rule():
    rule = read_rule({"fields": {"n": "sum", "loss": "mean", "seconds": {"how": "percentiles", "at": [100]}}})
    told = parts(
        {"n": 2, "loss": 1.0, "seconds": [1, 2], "more": "x"}, {"n": 3, "loss": 3.0, "seconds": [5]}, weights=[1, 1]
    )
    assert merge(rule, told) == {"n": 5, "loss": 2.0, "seconds": {"p100": 5.0, "count": 3}}


@pytest.mark.parametrize(
    ("rule", "values", "error"),
    [
        ("concatenate", ([1], 2), "'n1' gave the number 2: `concatenate` joins lists"),
        ("sum", (1, [1]), "'n1' gave a list of 1, and 'n0' the number 1: they must be of one shape"),
        ("sum", ({"a": 1}, {"b": 1}), "'n1' gave a mapping with b, and 'n0' a mapping with a"),
        ("sum", ([1, 2], [1]), "'n1' gave a list of 1, and 'n0' a list of 2"),
        ("sum", ({"a": [1]}, {"a": [1, 2]}), "'n1' gave a list of 2 as 'a'"),
        ("sum", ("x", "y"), "'n0' gave 'x': expected numbers"),
        ("mean", (None, None), "'n0' gave nothing: expected numbers"),
        ("sum", (True, True), "'n0' gave 'True': expected numbers"),
        ({"how": "best", "by": "x"}, ({"x": 1}, {"y": 1}), "'n1' gave a mapping with y: expected .* the number 'x'"),
        ({"how": "mean", "weight": "n"}, ({"n": 0, "x": 1},), "must not all be 0"),
        ("vote", ([1, 2], [1]), "lists of one length"),
        ("percentiles", ([1, "x"],), "more than numbers"),
        ("percentiles", ({"edges": [0, 1], "counts": [1]}, {"edges": [0, 2], "counts": [1]}), "'n1' has other edges"),
        ("percentiles", ({"edges": [1, 0], "counts": [1]},), "edges do not grow"),
        ("percentiles", ({"edges": [0, 1], "counts": [1, 2]},), "one edge more than counts"),
        ({"how": "join", "by": "id"}, ([{"x": 1}],), "lists of mappings that have it"),
        (
            {"how": "join", "by": "id"},
            ([{"id": 1, "x": 1}], [{"id": 1, "x": 2}]),
            "'n0' and 'n1' both gave 'x' for id = 1",
        ),
        ({"fields": {"a": "sum"}}, ({"a": 1}, {"b": 2}), "'n1' gave a mapping with b: expected a mapping with a"),
    ],
)
def test_what_does_not_fit_together_is_named(rule, values, error):
    with pytest.raises(UnlikeResults, match=error):
        merge(read_rule(rule), parts(*values))


@pytest.mark.parametrize(
    ("told", "error"),
    [
        ("average", "expected one of concatenate, .*got 'average'"),
        (7, "or a mapping with `how`; got 7"),
        ({"how": "best"}, "best needs `by`"),
        ({"how": "best", "by": "x", "prefer": "most"}, "`prefer` is max or min"),
        ({"how": "sum", "by": "x"}, "sum has no option 'by'; it takes none"),
        ({"how": "percentiles", "at": [101]}, "from 0 to 100"),
        ({"how": "call"}, "needs the function"),
        ({"fields": {}}, "`fields` says for each field"),
        ({"fields": {"a": "call"}}, r"merge.a: .*needs the function"),
        ({"fields": {"a": {"fields": {"b": "sum"}}}}, r"merge.a: fields is for whole results"),
        ({"how": "mean", "weight": 3}, "`weight` is a text"),
    ],
)
def test_rules_that_cannot_be(told, error):
    with pytest.raises(SettingsError, match=error):
        read_rule(told)


@given(values=NUMBERS)
def test_one_part_is_the_whole(values):
    assume(values)
    assert merge(Rule(how="concatenate"), parts(values)) == values
    assert merge(Rule(how="sum"), parts(values)) == values
