"""Incidents: the alarms of many series that one commit explains are told once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dtf_lightning.farm.verdicts.history.alarms import Alarm
from dtf_lightning.farm.verdicts.series import percent

WITHIN = 1
"""Points by which the onset of an alarm may be wrong, once it is relocated."""


@dataclass(frozen=True, kw_only=True)
class Incident:
    """Alarms that may all come from one commit."""

    first: int
    last: int
    """The commit is one of these points; indices start at 0."""
    alarms: tuple[Alarm, ...]

    @property
    def sentence(self) -> str:
        """What is told, with the largest change."""
        largest = max(self.alarms, key=lambda alarm: abs(alarm.log_ratio))
        way = "slower" if largest.log_ratio > 0 else "faster"
        where = f"at point {self.first}" if self.first == self.last else f"at points {self.first} to {self.last}"
        return f"{len(self.alarms)} series {where}; the most: {abs(percent(largest.log_ratio)):.0f} % {way}"


def incidents(alarms: Iterable[Alarm], within: int = WITHIN) -> list[Incident]:
    """Gather alarms into the fewest incidents that explain them all, in the order of their commits.

    Each alarm says that the commit is one of `onset - within` to `onset + within`; an incident's commit is one that all of its
    alarms allow. Series of one incident go up and down together: a commit may make some slower and some faster.
    """
    gathered: list[Incident] = []
    ordered = sorted(alarms, key=lambda alarm: (alarm.onset, alarm.series))
    while ordered:
        # Fewest points that stab all intervals: the earliest end, again and again.
        end = ordered[0].onset + within
        together = [alarm for alarm in ordered if alarm.onset - within <= end]
        ordered = ordered[len(together) :]
        first = max(alarm.onset - within for alarm in together)
        gathered.append(Incident(first=max(first, 0), last=end, alarms=tuple(together)))
    return gathered
