"""`read_sides`: two plans side by side: which tests broke or were mended, and how a metric of theirs differs.

Rule: a difference of two plans is no verdict. Runs of different tasks are on unlike machines at unlike times; what is said is
whether the difference is larger than the test's own noise before, in which case it is to be measured (`dtf farm compare`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.record.asked import unpack
from dtf_lightning.farm.results.rows import stored
from dtf_lightning.farm.results.store import FarmResults
from dtf_lightning.farm.results.tests.course import DURATION
from dtf_lightning.farm.results.tests.runs import ARE_OF, CODE, IS_RUN, RANK, TEST, Version, end_of, version_of
from dtf_lightning.farm.verdicts.history.noise import WINDOW, NoiseFloor
from dtf_lightning.farm.verdicts.metrics import Metric
from dtf_lightning.farm.verdicts.series import Series, percent

PLANS = 100
"""The newest, among which a commit or a branch is looked for."""
TESTS = 500
"""That are shown, the most remarkable ones first."""
EARLIER = 40
"""Plans whose runs say how much a test varies."""
FEWEST = 8
"""Values without which a test's noise is not known."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """A plan."""

    plan: str
    version: Version
    ended: Any
    """When the latest of its runs ended: a time in UTC."""
    runs: int


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One test in both plans. An end of "" is none: it did not run there."""

    test: str
    base: str
    candidate: str
    base_value: float | None = None
    candidate_value: float | None = None
    """The median of its runs that passed, in the metric's unit."""
    visible: float | None = None
    """The smallest change that the test's noise before lets see, as a fraction; `None`: that is not known."""
    higher_is_better: bool = False

    @property
    def state(self) -> str:
        """What has become of it: `broken`, `mended`, `new`, `gone`, `fails` as before, or `passes` as before."""
        if not self.base or not self.candidate:
            return "new" if self.candidate else "gone"
        before, after = self.base == "passed", self.candidate == "passed"
        if before != after:
            return "mended" if after else "broken"
        return "passes" if after else "fails"

    @property
    def change(self) -> float | None:
        """The candidate's value over the base's, in percent; above 0 it is more. `None` where one is missing."""
        if not self.base_value or not self.candidate_value or min(self.base_value, self.candidate_value) <= 0:
            return None
        return percent(math.log(self.candidate_value / self.base_value))

    @property
    def told(self) -> str:
        """What the change is: `worse` or `better` by more than the noise explains, `noise`, or "" where nobody can say."""
        if self.change is None or self.visible is None:
            return ""
        log_ratio = math.log1p(self.change / 100)
        if abs(log_ratio) <= math.log1p(self.visible):
            return "noise"
        return "better" if (log_ratio > 0) == self.higher_is_better else "worse"


_ORDER = ("broken", "mended", "fails", "gone", "new", "passes")
_TOLD = ("worse", "better", "", "noise")


@dataclass(frozen=True, kw_only=True)
class Sides:
    """The comparison."""

    base: Side
    candidate: Side
    pairs: tuple[Pair, ...]
    counts: dict[str, int]
    """State -> tests, of all of them."""
    num_tests: int


def newest_plans(results: FarmResults) -> list[Side]:
    """Return the newest plans that have results, the latest first. Raises `ResultsBusy`."""
    with results.reading() as reader:
        rows = reader.execute(
            f"SELECT plan, max(recorded), max(ended), count(*) FROM farm.results WHERE plan <> '' AND {IS_RUN} "
            f"GROUP BY plan ORDER BY 2 DESC LIMIT {PLANS}"
        ).fetchall()
        asked = dict(
            reader.execute(
                "SELECT plan, any_value(asked) FROM farm.results WHERE recorded IN (SELECT unnest($latest)) "
                "AND plan <> '' GROUP BY plan",
                {"latest": [recorded for _, recorded, _, _ in rows]},
            ).fetchall()
        )
    return [
        Side(plan=plan, version=version_of(unpack(asked.get(plan) or "")), ended=ended, runs=runs)
        for plan, _, ended, runs in rows
    ]


def find_side(plans: Sequence[Side], name: str, results: FarmResults) -> Side:
    """Return the plan of this id, or the newest one of this branch or commit. Raises `SettingsError` and `ResultsBusy`."""
    for side in plans:
        if side.plan == name or side.version.is_called(name):
            return side
    with results.reading() as reader:
        ((ended, runs),) = reader.execute(
            f"SELECT max(ended), count(*) FROM farm.results WHERE plan = ? AND {IS_RUN}", [stored(name)]
        ).fetchall()
    if not runs:
        raise SettingsError(
            f"{name!r} is no plan with results, and none of the {len(plans)} newest plans ran a branch or commit of that name"
        )
    return Side(plan=name, version=Version(), ended=ended, runs=runs)


_ENDS = f"""
    SELECT {TEST} AS test, max({RANK}) FILTER (plan = $base), max({RANK}) FILTER (plan = $candidate),
        median(value) FILTER (plan = $base AND ({CODE}) = 0), median(value) FILTER (plan = $candidate AND ({CODE}) = 0),
        min(recorded) FILTER (plan = $candidate)
    FROM (SELECT *, %s AS value FROM farm.results WHERE plan IN ($base, $candidate) AND {IS_RUN}) GROUP BY test
"""
_BEFORE = f"""
    SELECT test, list(value ORDER BY recorded DESC)[1:{WINDOW}] FROM (
        SELECT {TEST} AS test, %s AS value, recorded FROM farm.results
        WHERE {IS_RUN} AND ({CODE}) = 0 AND {ARE_OF} AND recorded < $before AND plan IN (SELECT unnest($plans))
    ) WHERE value > 0 AND isfinite(value) GROUP BY test
"""
_VALUE = "map_extract(metrics, $metric)[1]"
_SECONDS = f"coalesce({_VALUE}, epoch(ended) - epoch(started))"


def read_sides(results: FarmResults, base: str, candidate: str, metric: Metric) -> Sides:
    """Compare two plans, each by its id, or by a branch or commit that it ran. Raises `SettingsError` and `ResultsBusy`."""
    plans = newest_plans(results)
    sides = find_side(plans, base, results), find_side(plans, candidate, results)
    value = _SECONDS if metric.name == DURATION else _VALUE
    asked: dict[str, Any] = {"candidate": stored(sides[1].plan), "metric": stored(metric.name)}
    with results.reading() as reader:
        rows = reader.execute(_ENDS % value, asked | {"base": stored(sides[0].plan)}).fetchall()
        both = [row for row in rows if row[3] and row[4]]
        before = max((row[5] for row in both), default=0)
        history = {}
        if both:
            earlier = [side.plan for side in plans if side.plan != sides[1].plan][:EARLIER]
            tests = [row[0] for row in both][: 2 * TESTS]
            of_both = {"metric": asked["metric"], "tests": tests, "before": before, "plans": earlier}
            history = dict(reader.execute(_BEFORE % value, of_both).fetchall())
    pairs = [
        Pair(
            test=test,
            base=end_of(left) if left is not None else "",
            candidate=end_of(right) if right is not None else "",
            base_value=base_value,
            candidate_value=candidate_value,
            visible=visible_change(history.get(test, ()), metric),
            higher_is_better=metric.higher_is_better,
        )
        for test, left, right, base_value, candidate_value, _ in rows
    ]
    pairs.sort(key=lambda pair: (_ORDER.index(pair.state), _TOLD.index(pair.told), -abs(pair.change or 0.0), pair.test))
    counts = dict.fromkeys(_ORDER, 0)
    for pair in pairs:
        counts[pair.state] += 1
    return Sides(base=sides[0], candidate=sides[1], pairs=tuple(pairs[:TESTS]), counts=counts, num_tests=len(pairs))


def visible_change(newest_first: Sequence[float], metric: Metric) -> float | None:
    """Return the smallest change that is no noise after these values, as a fraction; `None` where they are too few."""
    if len(newest_first) < FEWEST:
        return None
    series = Series.of(metric.name, newest_first[::-1], metric.unit, higher_is_better=metric.higher_is_better)
    return NoiseFloor.of(series).smallest_visible
