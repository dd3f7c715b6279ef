"""`read_grid`: tests against device classes, workers or plans: how each ended last there, and whether that is new.

Rule: totals are of all tests of the project; no filter of what is shown changes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from dtf_lightning.farm.results.rows import stored
from dtf_lightning.farm.results.store import FarmResults
from dtf_lightning.farm.results.tests.runs import ARE_OF, IS_RUN, IS_TEST, RANK, TEST, end_of

PLANS = 20
"""The newest, where they are the columns."""
WORKERS = 50
"""With the latest results, where they are the columns."""


class By(Enum):
    """What the columns are."""

    CLASS = "class"
    WORKER = "worker"
    PLAN = "plan"


class Which(Enum):
    """Which tests are shown."""

    ALL = "all"
    FAILED = "failed"
    """Those whose last run did not pass."""
    CHANGED = "changed"
    """Those whose last run ended otherwise than the one before."""


@dataclass(frozen=True, kw_only=True)
class GridWanted:
    """What is asked for; "" asks nothing."""

    by: By = By.CLASS
    which: Which = Which.ALL
    project: str = ""
    search: str = ""
    """A part of the test's name, small and capital letters alike."""
    behind: str = ""
    """The last test of the page before."""
    limit: int = 50


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Runs of one test at one place."""

    last: str
    before: str
    """How the run before the last one ended; "": there was none."""
    runs: int
    failed: int
    ended: Any
    """When the latest one ended: a time in UTC, or `None`."""

    @property
    def changed(self) -> bool:
        """Whether the last run ended otherwise than the one before."""
        return self.before not in ("", self.last)


@dataclass(frozen=True, kw_only=True)
class GridRow:
    """One test. `cells`: by places; a place that is missing has no run."""

    test: str
    last: str
    before: str
    runs: int
    cells: dict[str, Cell] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One page. Tests stand by their names."""

    places: tuple[str, ...]
    rows: tuple[GridRow, ...]
    num_tests: int
    num_failed: int
    num_changed: int
    more: bool
    """There are tests behind these."""


_TESTS = f"""
    WITH tests AS MATERIALIZED (
        SELECT {TEST} AS test, max({RANK}, 2) AS ranks, count(*) AS runs FROM farm.results
        WHERE {IS_RUN} AND {IS_TEST} AND ($project = '' OR project = $project) GROUP BY test
    )
    SELECT totals.*, page.* FROM (
        SELECT count(*), count(*) FILTER (ranks[1] % 4 > 0), count(*) FILTER (ranks[1] % 4 <> ranks[2] % 4) FROM tests
    ) totals LEFT JOIN (
        SELECT test, ranks, runs FROM tests WHERE test > $behind AND ($search = '' OR contains(lower(test), $search))
        AND ($which = 'all' OR ($which = 'failed' AND ranks[1] % 4 > 0) OR ($which = 'changed' AND ranks[1] % 4 <> ranks[2] % 4))
        ORDER BY test LIMIT $limit
    ) page ON true ORDER BY test
"""
_CELLS = f"""
    SELECT {TEST} AS test, %s AS place, max({RANK}, 2) AS ranks, count(*), count(*) FILTER (outcome = 'failed'), max(ended)
    FROM farm.results %s WHERE {IS_RUN} AND ($project = '' OR project = $project) AND {ARE_OF} %s GROUP BY ALL
"""
_KNOWN = "LEFT JOIN (SELECT unnest($workers) AS worker, unnest($classes) AS class) known ON known.worker = workers[1]"
_OF_CLASS = ("coalesce(known.class, '')", _KNOWN, "")
_OF_WORKER = ("coalesce(workers[1], '')", "", "")
_OF_PLAN = ("plan", "", "AND plan IN (SELECT unnest($plans))")


def read_grid(results: FarmResults, wanted: GridWanted, classes: Mapping[str, str]) -> Grid:
    """Read one page. Raises `ResultsBusy`.

    Args:
        classes: worker -> its device class, of the workers that the farm knows; others are together under "".
    """
    project = stored(wanted.project)
    asked = {
        "project": project,
        "behind": stored(wanted.behind),
        "search": stored(wanted.search.lower()),
        "which": wanted.which.value,
        "limit": wanted.limit + 1,
    }
    with results.reading() as reader:
        found = reader.execute(_TESTS, asked).fetchall()
        rows = {
            test: GridRow(
                test=test, last=end_of(ranks[0]), before=end_of(ranks[1]) if len(ranks) > 1 else "", runs=runs
            )
            for _, _, _, test, ranks, runs in found
            if test is not None
        }
        shown = list(rows)[: wanted.limit]
        parameters: dict[str, Any] = {"project": project, "tests": shown}
        parts = _OF_WORKER
        plans: list[str] = []
        if wanted.by is By.CLASS:
            parts = _OF_CLASS
            parameters |= {"workers": list(map(stored, classes)), "classes": list(map(stored, classes.values()))}
        elif wanted.by is By.PLAN:
            parts = _OF_PLAN
            plans = parameters["plans"] = _newest_plans(reader, project)
        cells = reader.execute(_CELLS % parts, parameters).fetchall() if shown else []
    latest: dict[str, int] = {}
    for test, place, ranks, runs, failed, ended in cells:
        latest[place] = max(latest.get(place, 0), ranks[0])
        rows[test].cells[place] = Cell(
            last=end_of(ranks[0]), before=end_of(ranks[1]) if len(ranks) > 1 else "", runs=runs, failed=failed, ended=ended
        )  # fmt: skip
    newest_first = sorted(latest, key=lambda place: -latest[place])[:WORKERS]
    num_tests, num_failed, num_changed = found[0][:3]
    return Grid(
        places=tuple(plan for plan in plans if plan in latest) if wanted.by is By.PLAN else tuple(sorted(newest_first)),
        rows=tuple(rows[test] for test in shown),
        num_tests=num_tests,
        num_failed=num_failed,
        num_changed=num_changed,
        more=len(rows) > wanted.limit,
    )


def _newest_plans(reader: Any, project: str) -> list[str]:
    rows = reader.execute(
        "SELECT plan FROM farm.results WHERE plan <> '' AND ($project = '' OR project = $project) "
        f"GROUP BY plan ORDER BY max(recorded) DESC LIMIT {PLANS}",
        {"project": project},
    ).fetchall()
    return [plan for (plan,) in rows]
