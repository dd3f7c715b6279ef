"""The word for a change."""

from __future__ import annotations

import pytest

from dtf_lightning.elastic.rules.change import kind_of_change


@pytest.mark.parametrize(
    ("happened", "word"),
    [
        ({"first"}, "start"),
        ({"first", "joined"}, "start"),
        ({"joined"}, "join"),
        ({"left"}, "leave"),
        ({"failed"}, "failure"),
        ({"joined", "failed"}, "mixed"),
        ({"joined", "left", "failed"}, "mixed"),
        (set(), "mixed"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(sorted(value)),
)
def test_one_word(happened, word):
    """One thing gives its own word, several are mixed, and so is a world that is formed anew as it was."""
    given = {name: name in happened for name in ("first", "joined", "left", "failed")}
    assert kind_of_change(**given).value == word
