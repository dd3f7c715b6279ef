"""The pause that a worker measures, on a clock of the test's own."""

from __future__ import annotations

from dtf_lightning.elastic.observe.pause_clock import PauseClock


class Hands:
    """A clock that the test moves."""

    now = 100.0

    def monotonic(self):
        return self.now

    def wall(self):
        return self.now


def test_phases_add_up_to_the_pause():
    hands = Hands()
    clock = PauseClock(hands)
    clock.start()
    for seconds, phase in ((0.5, "unwind"), (1.0, "wait"), (0.25, "group")):
        hands.now += seconds
        clock.mark(phase)
    hands.now += 2.0
    assert clock.stop() == 3.75
    assert clock.phases == {"unwind": 0.5, "wait": 1.0, "group": 0.25, "first_step": 2.0}


def test_a_rescale_that_fails_and_begins_anew_is_one_pause():
    """The second failure comes while the group forms; training stands since the first."""
    hands = Hands()
    clock = PauseClock(hands)
    clock.start()
    for seconds, phase in ((1.0, "unwind"), (1.0, "wait")):
        hands.now += seconds
        clock.mark(phase)
    clock.start()
    hands.now += 4.0
    clock.mark("wait")
    assert clock.stop() == 6.0
    assert clock.phases == {"unwind": 1.0, "wait": 5.0, "first_step": 0.0}


def test_no_rescale_no_pause():
    """Steps between rescales ask, too, and set-up marks phases of its own."""
    hands = Hands()
    clock = PauseClock(hands)
    clock.mark("wait")
    assert (clock.stop(), clock.phases) == (None, {})
    clock.start()
    hands.now += 1.0
    assert clock.stop() == 1.0
    hands.now += 9.0
    assert clock.stop() is None
    clock.start()
    assert clock.stop() == 0.0
    assert clock.phases == {"first_step": 0.0}
