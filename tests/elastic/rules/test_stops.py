"""Workers of restart mode tell where they are once one has stopped: who stands apart, and who does not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.elastic.rules.stops import Place, first_stop, told_apart

NAMES = ("a/0", "a/1", "b/0")


def test_one_stops_and_another_goes_on():
    places = {0: Place(passed=7, step=5, stopped="trainer.should_stop was set"), 2: Place(passed=8)}
    assert first_stop(places) == 7
    said = told_apart(places, NAMES, 3)
    assert said is not None
    assert said.startswith(
        "workers of generation 3 stopped apart: rank 0 (a/0) stopped (after step 5: trainer.should_stop was set), but "
        "rank 2 (b/0) began another batch"
    )


def test_all_stop_together():
    """The slow ones have told nothing yet."""
    assert told_apart({0: Place(passed=7, stopped="the end"), 1: Place(passed=7, stopped="the end")}, NAMES, 1) is None


def test_one_that_goes_on_after_all():
    """It told that it stops, and now that it does not: they are together again."""
    assert told_apart({0: Place(passed=8), 2: Place(passed=8)}, NAMES, 1) is None


@given(st.dictionaries(st.integers(0, 2), st.tuples(st.integers(0, 3), st.booleans())))
def test_apart_is_when_one_has_passed_what_another_never_will(told):
    places = {rank: Place(passed=passed, stopped="x" * stopped) for rank, (passed, stopped) in told.items()}
    apart = any(
        stopped and passed < other_passed for passed, stopped in told.values() for other_passed, _ in told.values()
    )
    assert (told_apart(places, NAMES, 1) is not None) == apart
