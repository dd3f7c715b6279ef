"""Which checks a model gets, in which order, and what they ask of a farm."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.generate.checks import (
    DEVICES,
    MEMORY,
    Check,
    Choice,
    chosen,
    predecessors,
    request,
    tolerances,
)
from dtf_lightning.farm.generate.description import Cost, Family, FamilyFound, Input, ModelDescription, Output, Source

MODEL = ModelDescription(
    name="m",
    given="a:M",
    source=Source.TORCH,
    family=FamilyFound(family=Family.VISION, rule="it was said", confidence=1.0),
    inputs=(Input(name="x", dtype="float32", shape=(3,)),),
    outputs=(Output(name="y", dtype="float32", shape=((1, 0),)),),
    cost=Cost(
        parameters=10**7,
        weight_bytes=4 * 10**7,
        forward_fixed=4 * 10**7,
        forward_per_sample=10**6,
        training_fixed=2 * 10**8,
        training_per_sample=10**7,
        flops_per_sample=10**9,
        how="by hand",
    ),
    build={},
)
CPU = Choice(devices=(DEVICES["cpu"],), batch_sizes=(1, 4), precisions=("float32", "bfloat16"))
CHECKS = [
    Check(name="late", title="", after=("middle",), priority=90),
    Check(name="middle", title="", after=("first",), priority=50, needs=("lightning",)),
    Check(name="first", title="", priority=10),
    Check(name="other", title="", priority=20, needs=("accelerator",)),
]


def test_what_comes_after_another_is_behind_it():
    """Also over a check that cannot be made; why it cannot is told."""
    made, against = chosen(CHECKS, (), MODEL, CPU)
    assert [check.name for check in made] == ["first", "late"]
    assert predecessors(made[1], made, CHECKS) == ("first",)
    assert against == {"middle": "it is no Lightning module", "other": "there is no device but the CPU"}


def test_what_is_asked_for_by_name():
    made, _ = chosen(CHECKS, ["late"], MODEL, CPU)
    assert [check.name for check in made] == ["late"]
    assert predecessors(made[0], made, CHECKS) == ()
    with pytest.raises(SettingsError, match="the check 'middle' cannot be made for a:M: it is no Lightning module"):
        chosen(CHECKS, ["middle"], MODEL, CPU)
    with pytest.raises(SettingsError, match="there is no check 'firt'; did you mean 'first'"):
        chosen(CHECKS, ["firt"], MODEL, CPU)
    with pytest.raises(SettingsError, match="no check can be made"):
        chosen(CHECKS, (), replace(MODEL, inputs=()), CPU)


def test_a_circle_and_an_unknown_predecessor():
    with pytest.raises(SettingsError, match="in a circle: a after b after a"):
        chosen([Check(name="a", title="", after=("b",)), Check(name="b", title="", after=("a",))], (), MODEL, CPU)
    with pytest.raises(SettingsError, match="'a' comes after 'aa', which is none; did you mean 'a'"):
        chosen([Check(name="a", title="", after=("aa",))], (), MODEL, CPU)


@given(st.sampled_from(MEMORY), st.integers(1, 64), st.integers(1, 64), st.sampled_from(list(DEVICES.values())))
def test_a_request_grows_with_the_batch(memory, one, other, device):
    """And covers the tensors that were counted, on the CPU with a quarter more."""
    check = Check(name="c", title="", memory=memory)
    few, many = (
        request(check, MODEL, replace(CPU, batch_sizes=(size,)), device) for size in (min(one, other), max(one, other))
    )
    assert few.memory <= many.memory
    assert few.device_memory <= many.device_memory
    assert few.timeout >= 120
    assert few.timeout >= 9 * few.seconds
    assert bool(few.device_memory) == (device.name != "cpu")
    if memory == "forward" and device.name == "cpu":
        assert many.memory * 2**20 > 1.25 * MODEL.cost.forward(max(one, other))


def test_what_is_slow_comes_later():
    quick, slow = (request(Check(name="c", title="", seconds=s), MODEL, CPU, DEVICES["cpu"]) for s in (1.0, 500.0))
    assert quick.priority > slow.priority
    assert request(Check(name="c", title="", priority=20), MODEL, CPU, DEVICES["cpu"]).priority > slow.priority


def test_tolerances_go_by_family_and_output():
    assert tolerances(MODEL, ("float32", "bfloat16")) == {"bfloat16": {"*": 0.16}}
    clip = replace(MODEL, family=FamilyFound(family=Family.MULTIMODAL, rule="", confidence=1.0))
    assert tolerances(clip, ("float16",)) == {"float16": {"*": 0.075, "logits_per_image": 0.3, "logits_per_text": 0.3}}
