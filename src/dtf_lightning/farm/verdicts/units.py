"""Units of metrics: values of one dimension are brought to its base unit before they are compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dtf_lightning.errors import SettingsError


@dataclass(frozen=True)
class Unit:
    """One unit: `value * scale` is in the base unit."""

    base: str
    scale: float
    higher_is_better: bool = False
    """For metrics in this unit, unless their owner says otherwise."""


UNITS = {
    **{name: Unit("s", scale) for name, scale in
       {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}.items()},
    **{name: Unit("B", scale) for name, scale in
       {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}.items()},
    **{name: Unit("1/s", scale, higher_is_better=True) for name, scale in
       {"1/s": 1.0, "1/min": 1 / 60, "items/s": 1.0, "samples/s": 1.0, "tokens/s": 1.0, "ops/s": 1.0}.items()},
    **{name: Unit("B/s", scale, higher_is_better=True) for name, scale in
       {"B/s": 1.0, "kB/s": 1e3, "MB/s": 1e6, "GB/s": 1e9, "MiB/s": 2.0**20, "GiB/s": 2.0**30}.items()},
    "J": Unit("J", 1.0), "kJ": Unit("J", 1e3), "Wh": Unit("J", 3600.0),
    "W": Unit("W", 1.0), "mW": Unit("W", 1e-3),
    "count": Unit("count", 1.0),
    "1": Unit("1", 1.0), "%": Unit("1", 0.01),
}  # fmt: skip
"""The units that are known, by name."""


def unit_of(name: str | None, metric: str) -> Unit:
    """Return a unit by its name. Raises `SettingsError` for none, and for one that is not known."""
    if not name:
        raise SettingsError(
            f"the metric {metric!r} has no unit, so that its values cannot be compared with others: say one of "
            f"{', '.join(UNITS)} (count for a plain number of things, 1 for a ratio)"
        )
    if name not in UNITS:
        raise SettingsError(f"the metric {metric!r} has the unknown unit {name!r}; known are {', '.join(UNITS)}")
    return UNITS[name]


def one_unit(names: Sequence[str | None], metric: str) -> tuple[str, list[float]]:
    """Return the base unit of values that may be in several units of one dimension, and the factor of each value.

    Raises `SettingsError` for units of several dimensions, and what `unit_of` raises.
    """
    found = {name: unit_of(name, metric) for name in dict.fromkeys(names)}
    bases = {unit.base for unit in found.values()}
    if len(bases) != 1:
        raise SettingsError(
            f"the metric {metric!r} has values in {' and '.join(map(repr, found))}, which measure different things: give "
            "each its own metric"
        )
    return bases.pop(), [found[name].scale for name in names]
