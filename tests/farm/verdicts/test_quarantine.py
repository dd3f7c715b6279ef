"""Which tests may fail: by name with all parameters, while it lasts."""

from __future__ import annotations

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.verdicts.quarantine import DAY, LONGEST, Quarantine, check, covers


def told(test, expires="2030-01-02T03:04:05Z", active=True):
    return {"test": test, "owner": "ada", "reason": "#7", "expires": expires, "active": active}


@pytest.mark.parametrize(
    ("quarantined", "test", "covered"),
    [
        ("a.py::test_a", "a.py::test_a", True),
        ("a.py::test_a", "a.py::test_a[1-x]", True),
        ("a.py::test_a", "a.py::test_ab", False),
        ("a.py::test_a[1]", "a.py::test_a[1]", True),
        ("a.py::test_a[1]", "a.py::test_a[2]", False),
        ("a.py::test_a[1]", "a.py::test_a", False),
        ("a.py", "a.py::test_a", False),
    ],
)
def test_parameters_are_covered_and_nothing_else(quarantined, test, covered):
    assert covers(quarantined, test) is covered


def test_it_ends():
    quarantine = Quarantine([told("t"), told("u", active=False), told("v", active=False), told("v[1]")])
    assert quarantine.of("t").told == "in quarantine until 2030-01-02, ada: #7"
    assert (quarantine.of("u"), quarantine.expired("t"), quarantine.expired("other")) == (None, None, None)
    assert quarantine.expired("u").told_expired == "its quarantine has expired on 2030-01-02, ada: #7"
    assert quarantine.of("v[1]").test == "v[1]", "the one that lasts"
    assert quarantine.expired("v[1]") is None
    assert quarantine.expired("v[2]").test == "v"


def test_of_several_the_longest_counts():
    quarantine = Quarantine([told("t", "2030-01-01T00:00:00Z"), told("t[1]", "2031-01-01T00:00:00Z")])
    assert quarantine.of("t[1]").expires.startswith("2031")
    assert quarantine.of("t").expires.startswith("2030")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"owner": " "}, "the owner of a quarantine has 1"),
        ({"reason": ""}, "the reason of a quarantine has 1"),
        ({"test": "t" * 1001}, "has 1 to 1000 characters"),
        ({"seconds": LONGEST + 1}, "ends after 90 days at most"),
        ({"seconds": 0.0}, "ends after 90 days at most, got 0 days"),
        ({"seconds": float("nan")}, "ends after 90 days at most"),
    ],
)
def test_bad_input(wrong, said):
    good = {"test": "t", "owner": "ada", "reason": "#7", "seconds": 14 * DAY}
    check(**good)
    with pytest.raises(SettingsError, match=said):
        check(**{**good, **wrong})
