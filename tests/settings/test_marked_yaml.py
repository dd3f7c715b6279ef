"""YAML whose errors say where."""

from __future__ import annotations

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.settings.marked_yaml import Node, parse_marked, read_marked


def plain(node: Node):
    if isinstance(node.value, dict):
        return {name: plain(one) for name, one in node.value.items()}
    return [plain(one) for one in node.value] if isinstance(node.value, list) else node.value


def test_values_and_places():
    root = parse_marked("a: 1\nb:\n  - x\n  - {c: 3.10, d: on, e: 2026-01-01}\n", "f")
    assert plain(root) == {"a": 1, "b": ["x", {"c": 3.1, "d": True, "e": "2026-01-01"}]}
    inner = root.value["b"].value[1]
    assert (inner.place.line, inner.place.column) == (4, 5)
    assert (inner.keys["d"].line, inner.keys["d"].column) == (4, 15)
    assert [inner.value[name].text for name in "cde"] == ["3.10", "on", "2026-01-01"]


def test_anchors_and_merges():
    """What a mapping says itself counts before what it merges, and the first of several before the others."""
    root = parse_marked("a: &a {x: 1, y: 1}\nb: &b {y: 2, z: 2}\nc: {<<: [*a, *b], x: 3}\nd: *a\n", "f")
    assert plain(root.value["c"]) == {"x": 3, "y": 1, "z": 2}
    assert root.value["d"] is root.value["a"]


def test_a_value_used_very_often_is_built_once():
    """A billion of them."""
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    root = parse_marked("\n".join(lines), "f")
    assert len(root.value["a9"].value) == 10


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a: 1\nb: 2\na: 3\n", "f:3:1: 'a' stands here twice; the first is in line 1"),
        ("a: [1\nb: 2\n", "f:2:"),
        ("a: &a [*a]\n", "f:1:4: this value holds itself"),
        ("? [1]\n: 2\n", "f:1:3: a key is a text"),
        ("a: !!python/object:os.system x\n", "f:1:4: values of the type 'python/object:os.system' are not taken here"),
        ("a: \x00", "f:1:1: this is not YAML"),
        ("", "f:1:1: the file is empty"),
        ("a: 1\n---\nb: 2\n", "f:2:1: this is not YAML: expected a single document"),
        ("[" * 1000, "f:"),
        ("<<: 7\n", "f:1:5: what is merged is a mapping"),
    ],
)
def test_refused(text, told):
    with pytest.raises(SettingsError) as caught:
        parse_marked(text, "f")
    assert str(caught.value).startswith(told)


def test_no_file(tmp_path):
    with pytest.raises(SettingsError, match=r"cannot read .*none\.yaml"):
        read_marked(str(tmp_path / "none.yaml"))
