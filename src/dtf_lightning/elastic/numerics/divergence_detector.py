"""Detects that training is being ruined: non-finite values, spikes, slow drifts.

It uses only the standard library, no clock and no I/O. All comparisons are in *scales*. A scale is the noise of the
curve itself, 1.4826 times the median absolute deviation of the last `window` observations (a standard deviation if they
are normal), but never less than `relative_scale` of the level: on a smooth curve a rise of 2 % is many deviations and
still harmless.

* A **spike** is `patience` observations in a row more than `spike` scales worse than the rolling median. They are not
  taken into the window, so that a spike does not become the new normal while it is counted.
* A **drift** is a one-sided CUSUM (Page 1954) of what exceeds `drift_slack` scales above the best rolling median so
  far. An observation adds at most a third of `drift_limit`, so that no single outlier is a drift.
* Curves that fall, however steeply, never raise an alarm: everything is one-sided.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from dtf_lightning.elastic.checkpoints.record import MODES, Mode
from dtf_lightning.errors import SettingsError

MAD_TO_DEVIATION = 1.4826
"""The standard deviation over the median absolute deviation of a normal distribution: 1 / Phi^-1(3/4)."""

OUTLIERS_FOR_A_DRIFT = 3
"""A drift needs more than this many observations."""


class DivergenceKind(Enum):
    NON_FINITE = "non-finite"
    SPIKE = "spike"
    DRIFT = "drift"


@dataclass(frozen=True, kw_only=True)
class DivergenceSettings:
    """What counts as divergence. The defaults suit training losses, one observation per step."""

    mode: Mode = "min"
    """Whether lower (`min`) or higher (`max`) values are better."""
    window: int = 50
    """The number of observations from which the rolling median and the noise are computed."""
    warm_up: int = 20
    """The number of observations before spikes and drifts are looked for; non-finite values count from the first."""
    spike: float = 6.0
    """The number of scales above the rolling median from which on an observation belongs to a spike."""
    patience: int = 3
    """The number of observations in a row that make a spike."""
    non_finite_patience: int = 1
    """The number of NaNs or infinities in a row that are divergence."""
    drift_slack: float = 4.0
    """The number of scales above the best level so far that are no drift, however long they last: warm restarts, a
    harder part of the data."""
    drift_limit: float = 12.0
    """The sum of scales above the slack that is a drift; 0 turns drifts off."""
    relative_scale: float = 0.1
    """The least scale, as a part of the level."""
    absolute_scale: float = 1e-12
    """The least scale, in the metric's own unit; for metrics around zero."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise SettingsError(f"mode={self.mode!r}: choose 'min' (lower is better) or 'max'")
        for name, least in (("window", 2), ("warm_up", 1), ("patience", 1), ("non_finite_patience", 1)):
            if getattr(self, name) < least:
                raise SettingsError(f"{name}={getattr(self, name)}: expected at least {least}")
        for name in ("spike", "absolute_scale"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name}={getattr(self, name)}: expected more than 0")
        for name in ("drift_slack", "drift_limit", "relative_scale"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name}={getattr(self, name)}: expected at least 0")
        if self.warm_up > self.window:
            raise SettingsError(
                f"warm_up={self.warm_up} must not exceed window={self.window}: they are the same values"
            )


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The decision that training diverges."""

    kind: DivergenceKind
    step: int
    """The step of the observation that decided it."""
    onset: int
    """The step of the first observation that was out of order."""
    value: float
    reason: str


class DivergenceDetector:
    """Watches one metric, value by value. Deterministic: the same values give the same decisions everywhere."""

    def __init__(self, settings: DivergenceSettings | None = None) -> None:
        self.settings = settings or DivergenceSettings()
        self._refresh_every = max(1, self.settings.window // 10)
        self.reset()

    def reset(self) -> None:
        """Forget all observations."""
        self._values: deque[float] = deque()
        self._sorted: list[float] = []
        self._since_refresh = 0
        self._level = self._scale = math.nan
        self._best_level, self._best_scale = math.inf, math.nan
        self.recover()

    def recover(self) -> None:
        """Forget what led to an alarm and keep what is normal; for use after a rollback."""
        self._num_non_finite = self._num_exceeding = 0
        self._drift = 0.0
        self._onset: dict[DivergenceKind, int] = {}

    @property
    def is_calm(self) -> bool:
        """Whether nothing out of order is being counted."""
        return not self._onset

    def observe(self, value: float, step: int) -> Divergence | None:
        """Take one value; return the decision that training diverges, if this value leads to it."""
        settings = self.settings
        if not math.isfinite(value):
            self._num_non_finite += 1
            self._begin(DivergenceKind.NON_FINITE, step)
            if self._num_non_finite >= settings.non_finite_patience:
                reason = (
                    f"{self._num_non_finite} non-finite in a row ({value}), {settings.non_finite_patience} are too many"
                )
                return self._decide(DivergenceKind.NON_FINITE, step, value, reason)
            return None
        self._num_non_finite = 0
        self._onset.pop(DivergenceKind.NON_FINITE, None)
        # From here on a larger value is worse.
        worse = value if settings.mode == "min" else -value
        if len(self._values) >= settings.warm_up:
            excess = (worse - self._level) / self._scale
            if excess > settings.spike:
                return self._exceeding(excess, value, step)
            decision = self._drifting(worse, value, step)
            if decision is not None:
                return decision
        self._num_exceeding = 0
        self._onset.pop(DivergenceKind.SPIKE, None)
        self._absorb(worse)
        return None

    # --- kinds -------------------------------------------------------------------------------------------------------

    def _exceeding(self, excess: float, value: float, step: int) -> Divergence | None:
        self._num_exceeding += 1
        self._begin(DivergenceKind.SPIKE, step)
        if self._num_exceeding < self.settings.patience:
            return None
        reason = (
            f"{self._num_exceeding} in a row more than {self.settings.spike:g} scales worse than the rolling median; "
            f"the last, {value:.6g}, is {excess:.1f} scales from {self._shown(self._level):.6g} (scale {self._scale:.3g})"
        )
        return self._decide(DivergenceKind.SPIKE, step, value, reason)

    def _drifting(self, worse: float, value: float, step: int) -> Divergence | None:
        settings = self.settings
        if not settings.drift_limit:
            return None
        excess = (worse - self._best_level) / self._best_scale - settings.drift_slack
        self._drift = max(0.0, self._drift + min(excess, settings.drift_limit / OUTLIERS_FOR_A_DRIFT))
        if self._drift == 0.0:
            self._onset.pop(DivergenceKind.DRIFT, None)
            return None
        self._begin(DivergenceKind.DRIFT, step)
        if self._drift <= settings.drift_limit:
            return None
        reason = (
            f"since step {self._onset[DivergenceKind.DRIFT]} it stays more than {settings.drift_slack:g} scales worse "
            f"than its best level {self._shown(self._best_level):.6g} (scale {self._best_scale:.3g}; sum "
            f"{self._drift:.1f}, limit {settings.drift_limit:g}), the last value is {value:.6g}"
        )
        return self._decide(DivergenceKind.DRIFT, step, value, reason)

    def _begin(self, kind: DivergenceKind, step: int) -> None:
        self._onset.setdefault(kind, step)

    def _decide(self, kind: DivergenceKind, step: int, value: float, reason: str) -> Divergence:
        return Divergence(kind=kind, step=step, onset=self._onset[kind], value=value, reason=reason)

    def _shown(self, worse: float) -> float:
        return worse if self.settings.mode == "min" else -worse

    # --- what is normal ----------------------------------------------------------------------------------------------

    def _absorb(self, worse: float) -> None:
        values, settings = self._values, self.settings
        values.append(worse)
        insort(self._sorted, worse)
        if len(values) > settings.window:
            del self._sorted[bisect_left(self._sorted, values.popleft())]
        self._since_refresh += 1
        if len(values) < settings.window or self._since_refresh >= self._refresh_every or math.isnan(self._best_scale):
            self._refresh()

    def _refresh(self) -> None:
        self._since_refresh = 0
        level = self._level = _middle(self._sorted)
        deviation = statistics.median([abs(value - level) for value in self._sorted])
        settings = self.settings
        self._scale = max(MAD_TO_DEVIATION * deviation, settings.relative_scale * abs(level), settings.absolute_scale)
        if len(self._values) >= settings.warm_up and level < self._best_level:
            self._best_level, self._best_scale = level, self._scale

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return all of the state, as plain numbers, lists and strings."""
        return {
            "values": list(self._values),
            "since_refresh": self._since_refresh,
            "level": self._level,
            "scale": self._scale,
            "best_level": self._best_level,
            "best_scale": self._best_scale,
            "num_non_finite": self._num_non_finite,
            "num_exceeding": self._num_exceeding,
            "drift": self._drift,
            "onset": {kind.value: step for kind, step in self._onset.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; the settings stay this detector's own."""
        self._values = deque(state["values"])
        self._sorted = sorted(self._values)
        self._since_refresh = state["since_refresh"]
        self._level, self._scale = state["level"], state["scale"]
        self._best_level, self._best_scale = state["best_level"], state["best_scale"]
        self._num_non_finite, self._num_exceeding = state["num_non_finite"], state["num_exceeding"]
        self._drift = state["drift"]
        self._onset = {DivergenceKind(kind): step for kind, step in state["onset"].items()}
        while len(self._values) > self.settings.window:  # saved with a longer window
            del self._sorted[bisect_left(self._sorted, self._values.popleft())]


def _middle(ordered: list[float]) -> float:
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
