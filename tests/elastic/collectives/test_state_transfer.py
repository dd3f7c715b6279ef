"""Checkpoint dictionaries from rank to rank over a real group."""

from __future__ import annotations

import pytest

from support.elastic.ranks import FORMING_TIMEOUT, RankFailed

pytestmark = pytest.mark.process

PAYLOAD = {
    "large": 4 * 3_000_000 + 11 * 4 * 200_000 + 2 * 200_000 + (1 << 20),
    "empty": 0,
    "no tensors": 0,
}


@pytest.mark.parametrize("kind", ["mixed", "large", "empty", "no tensors"])
def test_what_is_received_is_what_was_sent(start_group, kind):
    """Every dtype, shape and stride, classes of dictionaries and their attributes; the bytes are counted."""
    sender, receiver = start_group(2)
    receiver.start("receive", kind, 0)
    num_bytes = sender.call("send", kind, 1)
    assert receiver.result() == []
    if kind in PAYLOAD:
        assert 0 <= num_bytes - PAYLOAD[kind] < 4000, "the header"
    else:
        assert num_bytes > 1000


def test_one_state_after_the_other_and_back(start_group):
    """Several receivers are served in turn, and the group is as usable as before."""
    ranks = start_group(3)
    for receiver in (1, 2):
        ranks[receiver].start("receive", "mixed", 0)
    for receiver in (1, 2):
        ranks[0].call("send", "mixed", receiver)
    assert [rank.result() for rank in ranks[1:]] == [[], []]
    for rank in ranks:
        rank.start("all_reduce")
    assert [rank.result() for rank in ranks] == [3, 3, 3]


def test_a_slow_sender_is_waited_for(start_group):
    """The receiver asks long before the sender has packed: longer than the short timeout that the group formed with."""
    sender, receiver = start_group(2)
    sender.freeze()
    receiver.start("receive", "mixed", 0)
    assert not receiver.answers_within(1.5 * FORMING_TIMEOUT)
    sender.thaw()
    sender.call("send", "mixed", 1)
    assert receiver.result() == []


@pytest.mark.parametrize("end", ["kill", "cut"])
def test_the_sender_goes_away(start_group, end):
    """Killed, or the receiver is told that the generation is broken: an error that counts as a failed collective."""
    sender, receiver = start_group(2)
    receiver.start("receive", "large", 0)
    if end == "kill":
        sender.kill()
    else:
        receiver.cut()
    with pytest.raises(RankFailed) as caught:
        receiver.result()
    assert caught.value.communication, caught.value
