"""A database of runs, made of what a watch shows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import pytest

from dtf_lightning.farm.results.store import FarmResults
from support.farm.results import emptied, seen_run


@pytest.fixture(scope="module")
def database() -> Iterator[FarmResults]:
    database = FarmResults()
    yield database
    database.close()


@pytest.fixture
def results(database: FarmResults) -> FarmResults:
    return emptied(database)


class Runs:
    """Adds one run after the other, each later than those before; returns their tasks."""

    def __init__(self, results: FarmResults) -> None:
        self._results = results
        self._count = 0

    def __call__(self, end: str = "passed", **fields: object) -> str:
        return self.passed([fields], end)[0]

    def passed(self, runs: Iterable[Mapping[str, object]], end: str = "passed") -> list[str]:
        """Many at once, which is much faster."""
        told = [seen_run(self._count + number, end, **fields) for number, fields in enumerate(runs)]
        self._count += len(told)
        self._results.take_in(told)
        return [one.task for one in told]


@pytest.fixture
def run(results: FarmResults) -> Runs:
    return Runs(results)
