"""Deadlines: the earliest moment wins."""

from __future__ import annotations

from dtf_lightning.clock import Deadline


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
