"""`poll_until` on a clock that only its pauses move."""

from __future__ import annotations

import pytest

from dtf_lightning.clock import poll_until


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
