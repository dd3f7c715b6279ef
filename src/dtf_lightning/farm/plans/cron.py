"""Times by a cron expression of five fields in a time zone, as Debian's cron has them: read by `cronsim`.

| where clocks are changed | with fixed minute and hour (`30 2 * * *`) | with a star at the beginning of one (`*/15 * * * *`) |
|---|---|---|
| a time is skipped | the first minute after the gap, once | not at all |
| a time comes twice | the first of the two | both |
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.rules.submissions.schedules import AfterTime

ANY_TIME = 1_800_000_000.0
"""From which an expression is tried out."""


@lru_cache(maxsize=1000)
def times_of(cron: str, zone: str) -> AfterTime:
    """Return what gives the first time of an expression after a moment.

    Args:
        cron: minute, hour, day of the month, month, day of the week.
        zone: a name such as `Europe/Berlin`, or `UTC`.

    Raises `SettingsError` for an expression or a zone that means nothing, and for one whose time never comes.
    """
    from cronsim import CronSim, CronSimError

    where = _zone(zone)

    def after(moment: float) -> float | None:
        start = datetime.fromtimestamp(moment, UTC).astimezone(where)
        for told in CronSim(cron, start):
            found = told.timestamp()
            if found > moment:  # within an hour that comes twice it begins with the first
                return found
        return None

    if (number := len(cron.split())) != 5:
        raise SettingsError(
            f"the times {cron!r} have {number} fields; expected five: minute, hour, day of the month, month, day of the week, "
            "such as '30 2 * * 1-5'"
        )
    try:
        if after(ANY_TIME) is None:
            raise SettingsError(f"the times {cron!r} never come")
    except CronSimError as error:
        raise SettingsError(f"the times {cron!r} cannot be read: {_lowered(str(error))}") from None
    return after


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # OSError: the name of a folder of zones
        raise SettingsError(f"no time zone is called {name!r}; expected one such as 'Europe/Berlin' or 'UTC'") from None


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
