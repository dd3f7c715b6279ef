"""Finds a scheduling strategy by its name: this package's own, and those that installed packages add by an entry point.

A package adds one in its `pyproject.toml`; what stands there is called without arguments and gives a
`farm.rules.scheduling.Strategy`:

    [project.entry-points."dtf_lightning.farm.strategies"]
    nearest_rack = "my_package.strategies:NearestRack"
"""

from __future__ import annotations

from importlib.metadata import entry_points

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.rules.scheduling.strategies import STRATEGIES, Looks, Strategy

GROUP = "dtf_lightning.farm.strategies"


def strategy_names() -> tuple[str, ...]:
    """Every name that `strategy_named` knows, sorted."""
    return tuple(sorted({*STRATEGIES, *(entry.name for entry in entry_points(group=GROUP))}))


def strategy_named(name: str) -> Strategy:
    """A strategy; this package's own names cannot be taken by others.

    Raises `SettingsError` for a name that nobody has, and for an installed one that does not load or is no strategy.
    """
    if name in STRATEGIES:
        return STRATEGIES[name]()
    entries = entry_points(group=GROUP, name=name)
    if not entries:
        raise SettingsError(f"no scheduling strategy is called {name!r}; expected one of {', '.join(strategy_names())}")
    entry = next(iter(entries))
    try:
        strategy = entry.load()()
        looks = strategy.looks
        order = strategy.class_order(0, 1.0, 1.0)
    except Exception as error:
        raise SettingsError(
            f"the scheduling strategy {name!r} could not be loaded from {entry.value!r}: {error!r}. Mend or uninstall the "
            "package that adds it, or choose another strategy"
        ) from error
    if not isinstance(looks, Looks) or not isinstance(order, tuple):
        raise SettingsError(
            f"the scheduling strategy {name!r} from {entry.value!r} is none: expected `looks` to be a member of `Looks` and "
            f"`class_order` to give a tuple, got {looks!r} and {order!r}"
        )
    found: Strategy = strategy
    return found
