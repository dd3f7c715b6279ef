"""Policies that say which checkpoints to keep: pure objects with one method, combined by `AnyOf`.

Rules that every policy follows:

* it answers with names out of the records that it was given, and looks at nothing else;
* a metric that is missing, NaN or infinite is never best;
* of equal metrics the older checkpoint is better, so that a plateau replaces nothing;
* a suspect record (saved after training began to diverge) is kept only where no other could take its place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from dtf_lightning.elastic.checkpoints.record import MODES, Mode, Record, ranking
from dtf_lightning.errors import SettingsError


class Policy(Protocol):
    """Decides which of a run's checkpoints stay."""

    def keep(self, records: Sequence[Record]) -> frozenset[str]:
        """Return the names to keep, out of all records of a run, in any order."""
        ...


@dataclass(frozen=True)
class BestN:
    """Keeps the `count` checkpoints that are best by a metric."""

    count: int
    monitor: str
    mode: Mode = "min"

    def __post_init__(self) -> None:
        _at_least("BestN(count)", self.count, 0)
        if self.mode not in MODES:
            raise SettingsError(f"BestN(mode={self.mode!r}): choose 'min' (lower is better) or 'max'")

    def keep(self, records: Sequence[Record]) -> frozenset[str]:
        return frozenset(record.name for record in self.best(records))

    def best(self, records: Sequence[Record]) -> list[Record]:
        """Return the records that are kept, best first."""
        able = [record for record in records if record.metric(self.monitor) is not None and not record.suspect]
        return sorted(able, key=lambda record: ranking(record, self.monitor, self.mode))[: self.count]


@dataclass(frozen=True)
class LatestN:
    """Keeps the `count` checkpoints saved last; suspect ones only as far as there are not enough others."""

    count: int

    def __post_init__(self) -> None:
        _at_least("LatestN(count)", self.count, 0)

    def keep(self, records: Sequence[Record]) -> frozenset[str]:
        newest_first = sorted(records, key=lambda record: (record.suspect, -record.serial))
        return frozenset(record.name for record in newest_first[: self.count])


@dataclass(frozen=True)
class EveryNSteps:
    """Keeps the checkpoints whose step is a multiple of `interval`, for looking back at a whole run. Unbounded."""

    interval: int

    def __post_init__(self) -> None:
        _at_least("EveryNSteps(interval)", self.interval, 1)

    def keep(self, records: Sequence[Record]) -> frozenset[str]:
        return frozenset(record.name for record in records if record.step % self.interval == 0)


@dataclass(frozen=True)
class AnyOf:
    """Keeps the checkpoints that at least one of the policies keeps."""

    policies: tuple[Policy, ...]

    def keep(self, records: Sequence[Record]) -> frozenset[str]:
        return frozenset[str]().union(*(policy.keep(records) for policy in self.policies))


def _at_least(what: str, value: int, least: int) -> None:
    if value < least:
        raise SettingsError(f"{what}={value}: expected at least {least}")
