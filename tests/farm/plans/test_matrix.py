"""A matrix against an obvious product."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.plans.matrix import read_matrix
from dtf_lightning.settings.marked_yaml import parse_marked

VALUES = st.lists(st.sampled_from("pqrs"), min_size=1, max_size=4, unique=True)
AXES = st.dictionaries(st.sampled_from(["a", "b", "c"]), VALUES, min_size=1, max_size=3)


@st.composite
def matrices(draw):
    axes = draw(AXES)
    partial = st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in axes.items()})
    whole = st.fixed_dictionaries({name: st.sampled_from("pqrstu") for name in axes})
    return axes, draw(st.lists(partial.filter(bool), max_size=3)), draw(st.lists(whole, max_size=3))


@settings(max_examples=60, deadline=None)
@given(matrices())
def test_the_product_less_what_is_excluded_and_what_is_included_besides(matrix):
    axes, excluded, included = matrix
    text = json.dumps({**axes, "exclude": excluded, "include": included})
    expected = []
    for values in itertools.product(*axes.values()):
        cell = dict(zip(axes, values, strict=True))
        if not any(all(cell[name] == value for name, value in out.items()) for out in excluded):
            expected.append(cell)
    whole = [*expected, *included]
    repeated = any(cell in whole[:number] for number, cell in enumerate(whole))
    if repeated or not whole:
        with pytest.raises(SettingsError, match=r"already|nothing is left"):
            read_matrix(parse_marked(text, "f"))
    else:
        cells = read_matrix(parse_marked(text, "f"))
        assert list(cells) == whole
        assert [tuple(cell) for cell in cells] == [tuple(axes)] * len(whole)


def test_inclusions_alone():
    cells = read_matrix(parse_marked("include: [{os: linux, python: 3.10}, {python: 3.11, os: mac}]", "f"))
    assert cells == ({"os": "linux", "python": "3.10"}, {"os": "mac", "python": "3.11"})


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{}", "f:1:1: a matrix has at least one axis"),
        ("a: []", "f:1:4: the axis 'a' has no values"),
        ("a: x", "f:1:4: the axis 'a' is a list, got 'x'"),
        ("a b: [x]", "f:1:1: the axis 'a b' must be a word"),
        ("a: [x, x]", "f:1:8: the axis 'a' has the value 'x' twice"),
        ("a: [[x]]", "f:1:5: a value of the axis 'a' is a text or a number, got a list"),
        ("python: [x]\nexclude: [{pyton: x}]", "f:2:12: the matrix has no axis 'pyton'; did you mean 'python'?"),
        ("os: [linux]\nexclude: [{os: linx}]", "f:2:16: the axis 'os' has no value 'linx'; did you mean 'linux'?"),
        ("a: [x]\nb: [y]\ninclude: [{a: z}]", "f:3:11: an inclusion names each axis of the matrix (a, b), got a"),
        ("a: [x]\ninclude: [{a: x}]", "f:2:11: the matrix has x already"),
        ("a: [x]\nexclude: [{a: x}]", "f:1:1: nothing is left of this matrix"),
        ("a: [x]\nexclude: [{}]", "f:2:11: an exclusion names axes"),
        (
            "".join(f"{axis}: {json.dumps(list(range(50)))}\n" for axis in "abc"),
            "f:1:1: this matrix has 125000 instances, 10000 are allowed",
        ),
    ],
)
def test_refused(text, told):
    with pytest.raises(SettingsError) as caught:
        read_matrix(parse_marked(text, "f"))
    assert str(caught.value).startswith(told)
