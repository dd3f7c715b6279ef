"""`Comparison`: the samples of two programs, and that they were taken as the statistics assume.

Rules that this file guards:
- One process is one sample, however often it measured: what one process measures is alike, and processes differ by more. Of a
  process that measured several times the median counts (`of_process`).
- Base and candidate are interleaved in pairs, and a coin says which goes first. Then two equal programs exchange their
  names by chance, and the test is exact whatever else the machine does. An order that the coin did not say is refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.verdicts.pairs.plan import Plan, Side, first_of_pair
from dtf_lightning.farm.verdicts.series import Floats, checked
from dtf_lightning.farm.verdicts.units import unit_of


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What one process gave."""

    pair: int
    """Starts at 0."""
    side: Side
    process: str
    """Names the process; no two samples have the same."""
    value: float
    """In the comparison's unit."""


def of_process(values: Iterable[float], metric: str) -> float:
    """Return the one sample that the measurements of a process are. Raises `SettingsError` for none, and for what is no number."""
    measured = [checked(value, metric, place) for place, value in enumerate(values)]
    if not measured:
        raise SettingsError(f"a process measured nothing for the metric {metric!r}: see its output")
    return math.exp(median(math.log(value) for value in measured)) if len(measured) > 1 else measured[0]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Samples of a base and a candidate, in the order in which they were taken."""

    metric: str
    unit: str
    """As the samples are; any name that `units` knows."""
    higher_is_better: bool
    plan: Plan
    seed: str
    """Of the order."""
    samples: tuple[Sample, ...]
    num_devices: int = 1

    def __post_init__(self) -> None:
        unit_of(self.unit, self.metric)
        if not self.seed:
            raise SettingsError(
                f"the comparison of {self.metric!r} has no seed: which program goes first in a pair must be drawn at random, "
                "or what the machine does meanwhile is taken for the programs'. Take samples with `dtf farm compare`"
            )
        if len(self.samples) % 2:
            raise SettingsError(f"the last pair of {self.metric!r} has one sample: leave it out")
        self._check_processes()
        for place in range(0, len(self.samples), 2):
            self._check_pair(place // 2, self.samples[place : place + 2])

    def _check_processes(self) -> None:
        owners: dict[str, int] = {}
        for sample in self.samples:
            if sample.process in owners:
                raise SettingsError(
                    f"pairs {owners[sample.process] + 1} and {sample.pair + 1} of {self.metric!r} both have a sample of the process "
                    f"{sample.process}: what one process measures is alike, and is no two samples. Start a process for each "
                    "sample; the median of what it measures is the sample"
                )
            owners[sample.process] = sample.pair

    def _check_pair(self, pair: int, samples: Sequence[Sample]) -> None:
        first = first_of_pair(self.seed, pair)
        if [sample.pair for sample in samples] != [pair, pair] or samples[0].side == samples[1].side:
            raise SettingsError(
                f"samples {2 * pair + 1} and {2 * pair + 2} of {self.metric!r} are not base and candidate of pair {pair + 1}: pairs "
                "are taken one after the other"
            )
        if samples[0].side is not first:
            raise SettingsError(
                f"pair {pair + 1} of {self.metric!r} ran the {samples[0].side.value} first, and the order that was drawn says the "
                f"{first.value}: a comparison without random order is refused"
            )
        for sample in samples:
            checked(sample.value, self.metric, 2 * pair)

    @property
    def num_pairs(self) -> int:
        return len(self.samples) // 2

    @property
    def differences(self) -> Floats:
        """Of each pair the logarithm of candidate over base, turned so that more is worse: shape (pairs,)."""
        # `math.log`, whose last bit does not depend on the processor's vector instructions as numpy's does.
        costs = [math.log(sample.value) * (-1 if self.higher_is_better else 1) for sample in self.samples]
        signs = [1 if first.side is Side.BASE else -1 for first in self.samples[::2]]
        return np.array(
            [sign * (second - first) for sign, first, second in zip(signs, costs[::2], costs[1::2], strict=True)],
            dtype=np.float64,
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON can hold it, with every bit of its numbers."""
        body = dataclasses.asdict(self)
        body["samples"] = [[sample.pair, sample.side.value, sample.process, sample.value] for sample in self.samples]
        return body

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Comparison:
        """Read what `to_json` gave. Raises `SettingsError` for what is no comparison, or one that must be refused."""
        try:
            samples = tuple(
                Sample(pair=int(pair), side=Side(side), process=str(process), value=float(value))
                for pair, side, process, value in body["samples"]
            )
            return cls(**{**body, "samples": samples, "plan": Plan(**body["plan"])})
        except (KeyError, TypeError, ValueError) as error:
            if isinstance(error, SettingsError):
                raise
            raise SettingsError(f"what was stored is no comparison: {error!r}") from error
