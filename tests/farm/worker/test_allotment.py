"""Which devices an attempt gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.worker.allotment import WHOLE, Ledger, Shortage

DEVICES = {"cpu": ("0", "1", "2"), "gpu": ("a", "b")}
amounts = st.dictionaries(st.sampled_from(["cpu", "gpu", "memory"]), st.sampled_from([0.0, 0.25, 0.5, 1.0, 1.5, 2.0]))


@given(st.lists(st.one_of(amounts, st.integers(0, 20)), max_size=30))
def test_no_device_is_given_away_twice(steps):
    """Whatever is taken and given back in whatever order; and in the end all is free again."""
    ledger, held = Ledger(DEVICES), []
    for step in steps:
        if isinstance(step, int):
            if held:
                ledger.give_back(held.pop(step % len(held)))
            continue
        try:
            held.append(ledger.allot(step))
        except Shortage:
            continue
        used = {}
        for allotment in held:
            for resource, parts in allotment.items():
                for name, part in parts.items():
                    used[resource, name] = used.get((resource, name), 0) + part
        assert all(part <= WHOLE for part in used.values())
        assert sum(held[-1].get("gpu", {}).values()) == round(step.get("gpu", 0) * WHOLE)
    for allotment in held:
        ledger.give_back(allotment)
    assert ledger.free() == {"cpu": 3.0, "gpu": 2.0}


def test_parts_share_a_device():
    """So that another one stays whole."""
    ledger = Ledger(DEVICES)
    assert [ledger.allot({"gpu": 0.5})["gpu"] for _ in range(2)] == [{"a": 500}, {"a": 500}]
    assert ledger.allot({"gpu": 1})["gpu"] == {"b": 1000}


def test_a_shortage_takes_nothing():
    ledger = Ledger(DEVICES)
    ledger.allot({"gpu": 0.5})
    with pytest.raises(Shortage, match=r"it needs 2 gpu, and this worker has 1.5 free \(1 whole ones\)"):
        ledger.allot({"cpu": 1, "gpu": 2})
    assert ledger.free() == {"cpu": 3.0, "gpu": 1.5}


def test_cores_are_never_short():
    """Where parts have left no whole core, or there are fewer than asked for, an attempt runs anywhere."""
    ledger = Ledger(DEVICES)
    for _ in range(2):
        ledger.allot({"cpu": 1.5})
    assert ledger.allot({"cpu": 1}) == {}


def test_what_has_no_names_is_not_allotted():
    assert Ledger(DEVICES).allot({"memory": 512.0, "licence": 1}) == {}


def test_an_attempt_that_was_found():
    """Its devices are taken, as far as they are still there."""
    ledger = Ledger(DEVICES)
    ledger.take({"gpu": {"b": 1000, "gone": 1000}, "npu": {"0": 1000}})
    assert ledger.allot({"gpu": 1})["gpu"] == {"a": 1000}
