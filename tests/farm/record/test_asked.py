"""What a task was asked for, as a text beside its result."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.errors import ProtocolError
from dtf_lightning.farm.record.asked import MAX_ASKED, PLAIN, pack, unpack
from dtf_lightning.farm.record.codec import MAX_ENVELOPE, decode, encode
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.task_id import new_task_id, paired_task_id, time_of
from dtf_lightning.farm.record.values import Envelope, TaskOutcome, TaskSpecification
from dtf_lightning.farm.rules.needs import Need

ENVELOPE = Envelope(outcome=TaskOutcome.FAILED, attempt=1, revision=5)


@given(st.lists(st.text(), min_size=1), st.dictionaries(st.text(), st.text()), st.integers(0, 300))
def test_there_and_back(command, environment, repeats):
    asked = TaskSpecification(
        command=tuple(command) * (1 + repeats),
        environment=environment,
        needs=(Need(amounts={"gpu": 1}),),
        submitted=7.0,
    )
    again = unpack(pack(asked))
    assert again == asked
    assert again is not None
    assert again.submitted == 7.0


def test_small_ones_are_read_by_people():
    text = pack(TaskSpecification(command=("true",)))
    assert len(text) < PLAIN
    assert '"command":["true"]' in text


def test_a_gather_over_a_whole_plan_is_kept():
    chance = random.Random(1)
    after = tuple(new_task_id(1_800_000_000.0, chance.getrandbits(74)) for _ in range(10_000))
    asked = TaskSpecification(command=("gather",), after=after)
    assert unpack(pack(asked)) == asked
    envelope = replace(ENVELOPE, asked=pack(asked))
    assert decode(Kind.DONE, encode(envelope)) == envelope, "it does not count against the envelope's size"
    assert len(encode(ENVELOPE)) < MAX_ENVELOPE < len(pack(asked)) < MAX_ASKED


def test_the_rest_of_an_envelope_has_its_limit_all_the_same():
    with pytest.raises(ProtocolError, match="8192 are allowed"):
        encode(replace(ENVELOPE, asked="x" * 9000, reason="y" * MAX_ENVELOPE))


def test_what_is_too_large_is_not_kept():
    chance = random.Random(1)
    noise = "".join(chr(chance.randrange(0x20, 0xD000)) for _ in range(100_000))
    assert pack(TaskSpecification(command=(noise, noise))) == ""
    assert unpack("") is None


def test_what_cannot_be_read_is_as_if_it_were_not_kept():
    for text in ("{", "no base64!", "AAAA", '{"v":99,"command":["true"]}'):
        assert unpack(text) is None


def test_ids_that_two_others_make():
    one, other = new_task_id(1_800_000_000.0, 1), new_task_id(1_900_000_000.0, 2)
    made = paired_task_id(one, other)
    assert made == paired_task_id(one, other)
    assert time_of(made) == time_of(one)
    assert len({made, paired_task_id(other, one), paired_task_id(one, one), one, other}) == 5
