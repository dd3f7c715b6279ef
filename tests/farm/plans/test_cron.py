"""Times of cron expressions, held to a look at every minute: also where clocks are changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.plans.cron import times_of

SPRING = {
    "Europe/Berlin": datetime(2027, 3, 28, 1, tzinfo=UTC),
    "Australia/Lord_Howe": datetime(2027, 10, 2, 15, 30, tzinfo=UTC),
}
AUTUMN = {
    "Europe/Berlin": datetime(2027, 10, 31, 1, tzinfo=UTC),
    "America/New_York": datetime(2027, 11, 7, 6, tzinfo=UTC),
}
"""When clocks are changed there."""


def _field(text: str, low: int, high: int) -> set[int]:
    found: set[int] = set()
    for part in text.split(","):
        span, _, step = part.partition("/")
        first, _, last = (span if span != "*" else f"{low}-{high}").partition("-")
        end = int(last) if last else (high if step else int(first))
        found.update(range(int(first), end + 1, int(step or 1)))
    return found


def _matches(cron: str, wall: datetime) -> bool:
    minute, hour, day, month, weekday = cron.split()
    days = wall.day in _field(day, 1, 31), wall.isoweekday() % 7 in {one % 7 for one in _field(weekday, 0, 7)}
    in_day = all(days) if day.startswith("*") or weekday.startswith("*") else any(days)
    return (
        wall.minute in _field(minute, 0, 59)
        and wall.hour in _field(hour, 0, 23)
        and wall.month in _field(month, 1, 12)
        and in_day
    )


def minute_by_minute(cron: str, zone: str, start: float, end: float) -> list[float]:
    """What the table in `plans/cron.py` says, by looking at every minute of a span and at those that clocks skip."""
    where, found = ZoneInfo(zone), set()
    fixed = not any(field.startswith("*") for field in cron.split()[:2])
    moment = datetime.fromtimestamp(start, UTC).replace(second=0, microsecond=0) + timedelta(minutes=1)
    before = (moment - timedelta(minutes=1)).astimezone(where)
    while moment.timestamp() <= end:
        wall = moment.astimezone(where)
        jump = wall.replace(tzinfo=None) - before.replace(tzinfo=None)
        skipped = [
            before.replace(tzinfo=None) + timedelta(minutes=n) for n in range(1, int(jump / timedelta(minutes=1)))
        ]
        if (_matches(cron, wall) and not (fixed and wall.fold)) or (
            fixed and any(_matches(cron, one) for one in skipped)
        ):
            found.add(moment.timestamp())
        before, moment = wall, moment + timedelta(minutes=1)
    return sorted(found)


minutes = st.sampled_from(["0", "30", "15,45", "*", "*/20", "10-40/10", "59"])
hours = st.sampled_from(["*", "2", "1-3", "*/2", "0,2,23", "3"])
days = st.sampled_from(["*", "28", "1-7", "*/2", "31"])
months = st.sampled_from(["*", "3", "10-11"])
weekdays = st.sampled_from(["*", "0", "7", "1-5", "*/3"])


@settings(max_examples=60, deadline=None)
@given(
    cron=st.tuples(minutes, hours, days, months, weekdays).map(" ".join),
    change=st.sampled_from([*SPRING.items(), *AUTUMN.items(), ("UTC", datetime(2028, 2, 28, 23, tzinfo=UTC))]),
    start=st.integers(-30 * 60, 10 * 60),
    span=st.integers(1, 20 * 60),
)
def test_every_minute_is_looked_at(cron, change, start, span):
    zone, at = change
    begin = at.timestamp() + start * 60 + 7.5
    end = begin + span * 60
    after, found, time = times_of(cron, zone), [], begin
    while (time := after(time)) is not None and time <= end:
        found.append(time)
    assert found == minute_by_minute(cron, zone, begin, end)


@pytest.mark.parametrize(
    ("cron", "zone", "start", "expected"),
    [
        ("30 2 * * *", "Europe/Berlin", "2027-03-28T00:00Z", "2027-03-28T01:00Z"),  # 2:30 is skipped: 3:00 summer time
        ("30 2 * * *", "Europe/Berlin", "2027-10-31T00:00Z", "2027-10-31T00:30Z"),  # 2:30 comes twice: the first
        ("30 2 * * *", "Europe/Berlin", "2027-10-31T00:30Z", "2027-11-01T01:30Z"),
        ("30 2 * * *", "Europe/Berlin", "2027-10-31T01:10Z", "2027-11-01T01:30Z"),  # in the hour that comes again
        ("*/30 2 * * *", "Europe/Berlin", "2027-03-28T00:00Z", "2027-03-29T00:00Z"),  # with a star: not at all
        ("*/30 2 * * *", "Europe/Berlin", "2027-10-31T00:30Z", "2027-10-31T01:00Z"),  # with a star: both
        ("0 0 29 2 *", "UTC", "2027-01-01T00:00Z", "2028-02-29T00:00Z"),
    ],
)
def test_where_clocks_are_changed(cron, zone, start, expected):
    found = times_of(cron, zone)(datetime.fromisoformat(start).timestamp())
    assert found is not None
    assert datetime.fromtimestamp(found, UTC) == datetime.fromisoformat(expected)


@pytest.mark.parametrize(
    ("cron", "zone", "told"),
    [
        ("* * * *", "UTC", "have 4 fields; expected five"),
        ("0 * * * * *", "UTC", "have 6 fields; expected five"),
        ("61 * * * *", "UTC", "bad minute"),
        ("0 0 31 2 *", "UTC", "bad day-of-month"),
        ("0 0 * * *", "Europe/Berlinn", "no time zone is called 'Europe/Berlinn'"),
        ("0 0 * * *", "../etc/passwd", "no time zone is called"),
        ("0 0 * * *", "Europe", "no time zone is called"),
        ("0 0 * * *", "", "no time zone is called"),
    ],
)
def test_what_means_nothing(cron, zone, told):
    with pytest.raises(SettingsError, match=told):
        times_of(cron, zone)
