"""`Metric`: what a metric is called, its unit, and which way is better, as people write it: `latency:ms`, `items:1/s:higher`."""

from __future__ import annotations

from dataclasses import dataclass

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.verdicts.units import unit_of

SECONDS = ("time", "cpu", "duration")
"""Metrics whose unit everybody knows: of a program's run, and of a task from its start to its end."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """What is measured: its name, its unit, and which way is better."""

    name: str
    unit: str
    higher_is_better: bool

    @classmethod
    def parse(cls, text: str) -> Metric:
        """Read NAME or NAME:UNIT, with `:higher` or `:lower` behind it. Those of `SECONDS` need no unit.

        Raises `SettingsError` for a metric without unit and for unknown words.
        """
        name, *words = text.split(":")
        better = [word for word in words if word in ("higher", "lower")]
        units = [word for word in words if word not in ("higher", "lower")]
        if not name or len(better) > 1 or len(units) > 1:
            raise SettingsError(
                f"the metric {text!r} cannot be read; expected NAME:UNIT, such as latency:ms or items:1/s:higher"
            )
        unit = units[0] if units else ("s" if name in SECONDS else "")
        known = unit_of(unit, name)
        return cls(name=name, unit=unit, higher_is_better=better[0] == "higher" if better else known.higher_is_better)
