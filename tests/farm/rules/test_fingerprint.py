"""Which tasks are the same work."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtf_lightning.farm.record.values import TaskSpecification
from dtf_lightning.farm.rules.needs import Need
from dtf_lightning.farm.server.envelopes import fingerprint_of

TASK = TaskSpecification(command=("pytest",))
OTHER = {
    "command": ("pytest", "-q"),
    "call": "import",
    "project": "vision",
    "folder": "sub",
    "source": "a" * 64,
    "inputs": {"data": f"sha256:{'b' * 64}"},
    "environment": {"A": "1"},
    "secrets": ("TOKEN",),
    "needs": (Need(amounts={"gpu": 1}),),
    "gang": 2,
    "index": 0,
    "artifacts": ("*.xml",),
    "permissions": ("read",),
}
"""Of each field that enters another value than `TASK` has."""
SAME = {
    "plan": "p", "name": "n", "array": 3, "array_id": "a", "training": 1, "suspend_for": 1, "after": ("a",), "after_any": ("a",),
    "priority": 1, "timeout": 5.0, "expires": 5.0, "retries": 2, "retry_on": ("failed",), "retry_exit_codes": (3,),
    "limits": {"matlab": 1}, "stdin": "a", "key": "k", "retry_of": "a", "avoid": ("w",), "reuse": 5.0, "submitted": 5.0,
}  # fmt: skip


def test_every_field_enters_or_does_not():
    """A field that is added is put into one of the tables."""
    assert {field.name for field in fields(TaskSpecification)} == OTHER.keys() | SAME.keys()
    assert not OTHER.keys() & SAME.keys()


@pytest.mark.parametrize("field", OTHER)
def test_what_enters(field):
    assert fingerprint_of(replace(TASK, **{field: OTHER[field]})) != fingerprint_of(TASK)


@pytest.mark.parametrize("field", SAME)
def test_what_does_not(field):
    assert fingerprint_of(replace(TASK, **{field: SAME[field]})) == fingerprint_of(TASK)


def test_it_is_the_same_over_releases():
    """Else nothing that is known would be found: raise `VERSION` where it is meant."""
    assert fingerprint_of(TASK) == "0bbc6f7df9d57fc5453e09832d13b3746c9e0590c408ad795174be002edd8911"


words = st.sampled_from(["", "a", "b", "ab", "\ud800", "é", '"', "\0"])
pairs = st.dictionaries(words, words, max_size=2)
needs = st.builds(
    Need,
    amounts=st.dictionaries(st.sampled_from(["cpu", "gpu", "memory"]), st.sampled_from([0.0, 1.0, 1, 2]), max_size=2),
    labels=st.lists(st.sampled_from(["ssd", "a100"]), max_size=2).map(tuple),
    exclusive=st.booleans(),
)
specifications = st.builds(
    TaskSpecification,
    command=st.lists(words, max_size=2).map(tuple),
    environment=pairs,
    inputs=pairs,
    secrets=st.lists(words, max_size=2).map(tuple),
    needs=st.lists(needs, max_size=2).map(tuple),
    artifacts=st.lists(words, max_size=2).map(tuple),
    index=st.sampled_from([None, 0, 1]),
    priority=st.integers(0, 1),
)


def all_that_enters(task):
    """As one says it in words."""
    alternatives = {
        (
            frozenset((name, amount) for name, amount in need.amounts.items() if name != "memory" and amount),
            frozenset(need.labels),
            need.exclusive,
        )
        for need in task.needs or (Need(amounts={"cpu": 1}),)
    }
    return task.command, task.environment, task.inputs, set(task.secrets), alternatives, task.artifacts, task.index


@settings(max_examples=60)
@given(specifications, specifications, st.data())
def test_the_same_for_the_same_work_only(one, other, data):
    other = data.draw(st.sampled_from([other, replace(one, priority=5), replace(one, needs=one.needs[::-1])]))
    assert (fingerprint_of(one) == fingerprint_of(other)) == (all_that_enters(one) == all_that_enters(other))
