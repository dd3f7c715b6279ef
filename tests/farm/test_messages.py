"""Messages between workers and coordinators: what was said is heard, whatever a command has written."""

from __future__ import annotations

import asyncio
import math

import pytest

from dtf_lightning.errors import ProtocolError
from dtf_lightning.farm.messages import (
    TOGETHER,
    TOGETHER_SIZE,
    Acknowledge,
    Drain,
    Draining,
    Heartbeat,
    Refuse,
    Result,
    Run,
    next_text,
    read_message,
    read_messages,
    write_message,
)
from dtf_lightning.farm.record.values import TaskSpecification
from dtf_lightning.farm.rules.attempts import AttemptOutcome, OutcomeKind

PLAIN = AttemptOutcome(kind=OutcomeKind.FAILED, exit_code=3, started=1.0, ended=2.5, tail="käse")
NO_UTF8 = AttemptOutcome(kind=OutcomeKind.FAILED, tail=b"\xff\x80".decode(errors="surrogateescape"))
ENDLESS = AttemptOutcome(kind=OutcomeKind.COMPLETED, metrics={"loss": math.inf}, counts={"passed": 1 << 80})


@pytest.mark.parametrize("outcome", [PLAIN, NO_UTF8, ENDLESS], ids=["plain", "no UTF-8", "no end"])
def test_what_is_said_is_heard(outcome):
    """A WebSocket's text is UTF-8: what is none travels escaped."""
    message = Result(task="t", number=1, revision=9, outcome=outcome)
    text = write_message(message)
    text.encode()
    assert read_message(text) == message


def test_nan_is_a_number():
    outcome = AttemptOutcome(kind=OutcomeKind.COMPLETED, metrics={"loss": math.nan}, reason="null")
    heard = read_message(write_message(Result(task="t", number=1, revision=9, outcome=outcome)))
    assert isinstance(heard, Result)
    assert math.isnan(heard.outcome.metrics["loss"])
    assert heard.outcome.reason == "null"


def test_a_specification_travels_whole():
    run = Run(task="t", number=1, revision=9, specification=TaskSpecification(command=("a", "\udcff"), priority=-2))
    assert read_message(write_message(run)) == run


@pytest.mark.parametrize("message", [Heartbeat(), Drain(), Draining(), Refuse(reason="r")])
def test_few_fields_or_none(message):
    assert read_message(write_message(message)) == message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"type":"nothing","v":1}',
        '{"type":"run","v":2}',
        '{"type":"started","v":1,"task":3}',
        '"\\ud800"',
    ],
)
def test_anything_else_is_an_error(text):
    with pytest.raises(ProtocolError):
        read_message(text)


def test_what_waits_together_travels_together():
    """In its order; a long queue in pieces, each of which is bounded."""
    said = [Heartbeat(), *(Result(task=f"t{n}", number=1, revision=n, outcome=PLAIN) for n in range(1, 2 * TOGETHER))]
    queue: asyncio.Queue = asyncio.Queue()
    for message in said:
        queue.put_nowait(message)
    texts = []
    while not queue.empty():
        texts.append(asyncio.run(next_text(queue)))
    heard = [read_messages(text) for text in texts]
    assert [message for messages in heard for message in messages] == said
    assert len(heard) == 2


def test_large_ones_do_not_travel_together():
    queue: asyncio.Queue = asyncio.Queue()
    large = Run(task="t", number=1, revision=9, specification=TaskSpecification(command=("x" * TOGETHER_SIZE,)))
    for _ in range(2):
        queue.put_nowait(large)
    assert read_messages(asyncio.run(next_text(queue))) == [large]


def test_what_only_waits_for_company_travels_with_the_next_one():
    """An acknowledgement does not wake its sender: it goes with what the worker is to run next."""
    queue: asyncio.Queue = asyncio.Queue()
    queue.put_nowait(Drain())
    waiting = [Acknowledge(task="t", revision=1, recorded=True)]
    text = asyncio.run(next_text(queue, lambda: [waiting.pop()] if waiting else []))
    assert list(read_messages(text)) == [Drain(), Acknowledge(task="t", revision=1, recorded=True)]
    assert queue.empty()
