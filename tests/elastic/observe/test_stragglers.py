"""Workers compared by how long they are busy with a step of their own."""

from __future__ import annotations

from dtf_lightning.elastic.observe.stragglers import MIN_SECONDS, StragglerWatch


def look(watch, now, step=0.1, **busy):
    return [(found.worker, found.over) for found in watch.look(busy, step, now)]


def test_slow_for_long():
    """Named once, when it was slow in three looks in a row and for ten seconds; and once more when it is not."""
    watch = StragglerWatch()
    seen = [look(watch, 5.0 * number, a=0.05, b=0.05, c=0.09) for number in range(5)]
    assert seen == [[], [], [("c", False)], [], []]
    seen = [look(watch, 5.0 * number, a=0.05, b=0.05, c=0.05) for number in range(5, 9)]
    assert seen == [[], [], [("c", True)], []]


def test_now_and_then_is_not_for_long():
    """A slow look among quick ones begins the count anew, and so do quick looks of a slow worker."""
    watch = StragglerWatch()
    for number in range(12):
        slow = 0.09 if number % 3 else 0.05
        assert look(watch, MIN_SECONDS * number, a=0.05, b=0.05, c=slow) == []


def test_many_quick_looks_are_not_long():
    """Short steps: three looks within a second say nothing."""
    watch = StragglerWatch()
    assert [look(watch, 0.1 * number, a=0.05, b=0.09) for number in range(10)] == [[]] * 10


def test_of_two_the_slower():
    """With two workers the quicker one is what is usual."""
    watch = StragglerWatch()
    seen = [look(watch, MIN_SECONDS * number, a=0.05, b=0.08) for number in range(3)]
    assert seen[-1] == [("b", False)]


def test_who_holds_nobody_up():
    """Twice as busy as the others with a small part of a step: the step's length comes from elsewhere."""
    watch = StragglerWatch()
    assert [look(watch, MIN_SECONDS * n, step=1.0, a=0.01, b=0.02) for n in range(5)] == [[]] * 5


def test_who_left_is_forgotten():
    """A straggler that leaves, and another world: nothing is told of it, and its return begins anew."""
    watch = StragglerWatch()
    for number in range(3):
        look(watch, MIN_SECONDS * number, a=0.05, b=0.05, c=0.09)
    assert look(watch, 100.0, a=0.05, b=0.05) == []
    assert look(watch, 110.0, a=0.05, b=0.05, c=0.05) == []
    assert [look(watch, 120.0 + MIN_SECONDS * n, a=0.05, b=0.05, c=0.09) for n in range(3)][-1] == [("c", False)]
