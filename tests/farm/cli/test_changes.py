"""`dtf farm results changes`: from the rows of a farm's results to the table."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.farm.cli.verdicts import changes
from dtf_lightning.farm.record.values import TaskOutcome
from dtf_lightning.farm.results.query import query
from dtf_lightning.farm.results.rows import SeenResult
from dtf_lightning.farm.results.store import FarmResults
from support.farm.results import ENVELOPE

FIRST = 1_800_000_000.0


class Answering:
    """A farm that answers from these results."""

    def __init__(self, results: FarmResults) -> None:
        self.results = results

    def query(self, sql: str) -> dict:
        answer = query(self.results, sql)
        rows = [[str(cell) if hasattr(cell, "isoformat") else cell for cell in row] for row in answer.rows]
        return {"columns": answer.columns, "rows": rows, "truncated": answer.truncated}


@pytest.fixture
def results(monkeypatch):
    with_tables = FarmResults()
    monkeypatch.setattr(changes, "connect", lambda _: contextlib.nullcontext(Answering(with_tables)))
    yield with_tables
    with_tables.close()


def take_in(results: FarmResults, name: str, values: list[float], **fields) -> None:
    """One task a minute, in an order that is not that of their ends."""
    seen = []
    for minute, value in enumerate(values):
        envelope = replace(ENVELOPE, name=name, metrics={"it's": value}, ended=FIRST + 60 * minute, **fields)
        seen.append(SeenResult(task=f"{name}-{1000 - minute}", envelope=envelope, recorded=9, seen=FIRST))
    results.take_in(seen)


def test_a_step_a_drift_and_a_quiet_one(results, capsys):
    """By tests, which are told apart by their names; failed tasks do not count, nor a test that ran once."""
    noise = np.exp(np.random.default_rng(1).normal(0, 0.004, 60))
    take_in(results, "steps", list(20 * noise * np.where(np.arange(60) >= 40, 1.1, 1)))
    take_in(results, "drifts", list(20 * noise * np.linspace(1, 1.08, 60)))
    take_in(results, "quiet", list(20 * noise[:15]))
    take_in(results, "once", [3.0])
    take_in(results, "broken", [1.0, 2.0], outcome=TaskOutcome.FAILED)
    assert main(["farm", "results", "changes", "it's:ms"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["TASK", "RUNS", "NOISE", "VISIBLE"]
    drifts, quiet, steps = lines
    assert drifts.startswith("drifts  60")
    assert "drifted slower by" in drifts
    assert quiet.split()[:2] == ["quiet", "15"]
    assert quiet.endswith("2 %")
    assert "% worse" in steps
    assert "2027-01-15 08:40:00" in steps
    assert main(["farm", "results", "changes", "it's:ms", "--json"]) == 0
    told = {one["task"]: one for one in json.loads(capsys.readouterr().out)}
    assert [step["run"] for step in told["steps"]["steps"]] == [40]
    assert told["steps"]["steps"][0]["log_ratio"] == pytest.approx(np.log(1.1), abs=0.01)
    assert told["quiet"] == {**told["quiet"], "runs": 15, "steps": [], "drift": None}
    assert told["drifts"]["drift"] == pytest.approx(np.log(1.08), abs=0.01)


def test_bad_input(results, capsys):
    """A metric without unit, a value that is no number, and a metric that nobody reports."""
    take_in(results, "nan", [1.0, float("nan")])
    for metric, message in (("it's", "has no unit"), ("it's:ms", 'nan: value 2 of the metric "it\'s" is nan')):
        assert main(["farm", "results", "changes", metric]) == 2
        assert message in capsys.readouterr().err
    assert main(["farm", "results", "changes", "other:ms"]) == 0
    assert "no task has reported 'other' twice" in capsys.readouterr().err
