"""The demo's project, and its report."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from dataclasses import replace

import pytest

from dtf_lightning.farm.demo import training
from dtf_lightning.farm.demo.project import PARTS, write_project
from dtf_lightning.farm.demo.report import Row, problems, summary, table
from dtf_lightning.farm.plans.reading import read_plan

A = Row(task="a", name="tests", attempts=1, workers=("w0",), why_again="", outcome="completed")
B = Row(task="b", name="benchmark", attempts=2, workers=("w1", "w0"), why_again="w1 was killed", outcome="completed")
BOOKS = {"c0": Counter("ab"), "c1": Counter("ab")}


def test_the_books_balance():
    assert problems("ab", BOOKS, [A, B]) == []
    assert summary("ab", BOOKS, [A, B]) == "accepted 2, recorded 2 once, executed twice 1"
    assert table([A, B]) == [
        "task       attempts  where   why again      outcome",
        "-----------------------------------------------------",
        "tests      1         w0                     completed",
        "benchmark  2         w1, w0  w1 was killed  completed",
        "-----------------------------------------------------",
    ]


@pytest.mark.parametrize(
    ("books", "row", "told", "line"),
    [
        ({"c0": Counter("a")}, B, "1 tasks are not recorded by c0, such as b", "recorded 1 once"),
        ({"c0": Counter("abb")}, B, "1 tasks are recorded more than once by c0, such as b", "recorded 1 once"),
        ({"c0": Counter("abx")}, B, "1 tasks are recorded and were not accepted by c0, such as x", "recorded 2 once"),
        (BOOKS, replace(B, outcome="failed", why_again="exit code 1"), "benchmark is failed: exit code 1", "twice 1"),
        (BOOKS, replace(B, workers=()), "benchmark is completed, and no worker began it", "twice 0"),
    ],
)
def test_they_do_not_balance(books, row, told, line):
    assert problems("ab", books, [A, row]) == [told]
    assert line in summary("ab", books, [A, row])


@pytest.mark.process
def test_its_project_is_real(tmp_path):
    """Its plan is read, its tests pass, they fail where a sort is wrong, and its benchmark reports medians."""
    plan = read_plan(str(write_project(tmp_path / "p", seconds=0.01, runs=2, rounds=3)))
    assert len(plan.tasks) == 3 + 3 * 2 + 1

    def run(*words: str) -> int:
        variables = {"DTF_FARM_RESULTS": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [sys.executable, *words], cwd=tmp_path / "p", env=variables, capture_output=True
        ).returncode

    assert run("-m", "unittest", *(f"test_{part}" for part in PARTS)) == 0
    assert run("benchmark.py", "50", "0.01") == 0
    assert '"heap_ms"' in (tmp_path / "benchmark.jsonl").read_text()
    sorting = tmp_path / "p" / "sorting.py"
    sorting.write_text(sorting.read_text().replace("found[place - gap] > value", "found[place - gap] < value"))
    assert run("-m", "unittest", "test_shell") == 1


def story(borrowings=1, unfinished=(), missing=(), repeated=()):
    epochs = [{"missing": [], "repeated": []}, {"missing": list(missing), "repeated": list(repeated)}]
    return training.Story(
        training="t",
        accepted=("t",),
        unfinished=unfinished,
        borrowings=borrowings,
        audit={"committed_steps": 90, "epochs": epochs},
    )


def test_what_the_training_lost_is_told():
    """By the audit of its ledgers; one that lent nothing has shown nothing."""
    assert training.problems(story()) == []
    told = "the training: lent a device once and took it back, 90 steps, 0 samples lost, 0 repeated"
    assert training.summary(story()) == told
    assert training.problems(story(borrowings=0, unfinished=("suite, 1 is failed: exit code 1",))) == [
        "suite, 1 is failed: exit code 1",
        "the training lent no device",
    ]
    assert training.problems(story(borrowings=2, missing=[4, 5], repeated=[{}])) == [
        "the training lost 2 samples and repeated 1"
    ]
    assert "lent a device 2 times" in training.summary(story(borrowings=2))
