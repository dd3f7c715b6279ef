"""`poll_until` on a clock that only its pauses move, and deadlines."""

from __future__ import annotations

import pytest

from dtf_lightning.clock import Deadline, poll_until


class PausedClock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def wall(self) -> float:
        return self.now

    def pause(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock() -> PausedClock:
    return PausedClock()


def test_the_value_is_what_the_condition_came_to(clock):
    """Looked at every interval until it is true."""
    looks = iter(["", "", "there"])
    assert poll_until(lambda: next(looks), 5.0, "it", interval=0.5, clock=clock, pause=clock.pause) == "there"
    assert clock.now == 101.0


def test_a_last_look_when_the_time_is_over(clock):
    """It comes in the last pause, however long that was; without a deadline it is looked at once."""
    assert poll_until(lambda: clock.now >= 103.0, 2.5, "it", interval=3.0, clock=clock, pause=clock.pause)
    assert poll_until(lambda: True, 0.0, "it", clock=clock, pause=clock.pause)


def test_what_did_not_come(clock):
    """The error says how long was waited for what; a text that costs something is made only then."""
    with pytest.raises(TimeoutError, match=r"^waited 2 s for the file; there is nothing$"):
        poll_until(lambda: None, 2.0, lambda: "the file; there is nothing", clock=clock, pause=clock.pause)
    assert poll_until(lambda: True, 2.0, lambda: pytest.fail("too early"), clock=clock, pause=clock.pause)


def test_a_pause_may_end_the_wait(clock):
    """As Ctrl-C does in the demo."""

    def interrupted(_: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        poll_until(lambda: False, 2.0, "it", clock=clock, pause=interrupted)


# --- deadlines -------------------------------------------------------------------------------------------------------


def test_without_a_moment_nothing_is_due():
    """A deadline that nobody has set leaves its owner all the time there is."""
    deadline = Deadline()
    assert (deadline.at, deadline.is_due(1e9), deadline.left(0.0)) == (None, False, None)


def test_the_earliest_moment_counts():
    """Later moments and `None` change nothing, an earlier one does."""
    deadline = Deadline(7.0, None, 5.0)
    assert deadline.at == 5.0
    deadline.bring_forward(6.0, None)
    assert deadline.at == 5.0
    deadline.bring_forward(4.0)
    assert deadline.left(1.0) == 3.0


def test_it_is_due_from_its_moment_on():
    """At the moment itself there is no time left, and none below zero after it."""
    deadline = Deadline(4.0)
    assert [deadline.is_due(now) for now in (3.9, 4.0, 9.0)] == [False, True, True]
    assert (deadline.left(4.0), deadline.left(9.0)) == (0.0, 0.0)


def test_a_cleared_deadline_can_be_set_anew():
    """Also to a later moment than it had before."""
    deadline = Deadline(4.0)
    deadline.clear()
    assert not deadline.is_due(9.0)
    deadline.bring_forward(8.0)
    assert deadline.at == 8.0
