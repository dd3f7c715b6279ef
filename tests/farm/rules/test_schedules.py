"""What a schedule decides, held to a look at one time after the other."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dtf_lightning.farm.rules.submissions.schedules import COUNTED, Due, Overlap, decide, latest_due, next_time


def after_of(times):
    ordered = sorted(times)
    return lambda moment: next((time for time in ordered if time > moment), None)


times = st.lists(st.integers(0, 500).map(float), max_size=30)


@given(times, st.integers(-5, 505).map(float), st.integers(-5, 505).map(float))
def test_the_latest_counts_and_the_others_are_told(times, decided, now):
    between = sorted({time for time in times if decided < time <= now})
    expected = Due(time=between[-1], missed=len(between) - 1) if between else None
    assert latest_due(after_of(times), decided, now) == expected


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(0, 9 * 366 * 24 * 60).map(lambda minutes: minutes * 60.0))
def test_after_years(every, now):
    """However many times went by, the latest is found; beyond `COUNTED` they are not counted on."""

    def after(moment):
        return (moment // (every * 60.0) + 1) * every * 60.0

    due = latest_due(after, 0.0, now)
    number = int(now // (every * 60.0))
    if not number:
        assert due is None
    else:
        assert due == Due(time=number * every * 60.0, missed=min(number - 1, COUNTED))


@settings(max_examples=15)
@given(st.integers(0, 4000))
def test_rare_times_after_a_flood(gap):
    """Times that came often and come no more: the latest is where they ended."""
    last = 2000 * 60.0

    def after(moment):
        return None if moment >= last else (moment // 60.0 + 1) * 60.0

    assert latest_due(after, 0.0, last + gap * 86400.0) == Due(time=last, missed=COUNTED)


moments = st.lists(st.tuples(st.integers(0, 100).map(float), st.booleans(), st.booleans()), max_size=20)


@given(times, moments, st.sampled_from(Overlap))
def test_each_time_is_decided_once_and_in_order(times, moments, overlap):
    """Whoever looks whenever, clocks that go back among them, runs that go on, and pauses."""
    decided, told = 0.0, []
    for now, paused, goes_on in moments:
        found = decide(after_of(times), decided=decided, paused=paused, overlap=overlap, goes_on=goes_on, now=now)
        if found is None:
            continue
        assert not paused
        assert found.submits is not goes_on
        assert not (goes_on and overlap is Overlap.QUEUE)
        assert decided < found.due.time <= now
        told.append((found.due.time, found.due.missed))
        decided = found.due.time
    assert [time for time, _ in told] == sorted({time for time, _ in told})
    passed = {time for time in times if 0 < time <= decided}
    assert sum(missed + 1 for _, missed in told) == len(passed)


def test_the_next_time_is_yet_to_come():
    after = after_of([10.0, 20.0, 30.0])
    assert next_time(after, decided=0.0, paused=False, now=15.0) == 20.0
    assert next_time(after, decided=20.0, paused=False, now=15.0) == 30.0
    assert next_time(after, decided=0.0, paused=True, now=15.0) is None
    assert next_time(after, decided=0.0, paused=False, now=30.0) is None
