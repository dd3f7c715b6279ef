"""`dtf demo` as its user sees it: the real thing, start to end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dtf_lightning.elastic.reports.store import ResultsStore
from support import browser
from support.elastic.reports import BALANCE, LOOK, TITLES

DTF = Path(sys.executable).with_name("dtf")

DEADLINE = 900.0
"""Seconds; it takes 90 on an idle machine with two cores."""

pytestmark = pytest.mark.process


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [DTF, "demo", "--fast", "--folder", folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def rows(printed: str) -> list[re.Match[str]]:
    """Generation, reason, world size, pause, its worst, steps lost, samples lost, samples repeated."""
    return list(
        re.finditer(r"^ +(\d+)  (\S.*?) +(\d)  +(?:-|(\d+) \((\d+)\)) +(\d+) +(\d+) +(\d+)$", printed, re.MULTILINE)
    )


def test_everything_holds(tmp_path, fork_server):
    """Seven generations, nothing lost or repeated, a pause for each rescale, one continuous log, nothing left."""
    arguments = ["-m", "dtf_lightning", "demo", "--fast", "--folder", str(tmp_path / "demo")]
    with (tmp_path / "printed").open("wb") as output:
        demo = fork_server.start(arguments, os.environ, output.fileno())
    try:
        code = demo.wait(DEADLINE)
    finally:
        demo.send_signal(signal.SIGTERM)  # a demo that hangs ends its processes by itself
        demo.wait()
    printed = (tmp_path / "printed").read_text()
    assert code == 0, printed
    assert "\x1b" not in printed  # no terminal, no control characters
    table = rows(printed)
    assert [int(row[1]) for row in table] == list(range(1, 8)), printed
    assert [int(row[3]) for row in table] == [2, 3, 2, 3, 2, 3, 2]
    causes = ("start", "joined", "kill -9 of its worker", "again", "kill -9 of the leader", "joined", "SIGTERM")
    assert [cause for cause, row in zip(causes, table, strict=True) if cause not in row[2]] == []
    assert all(0 < int(row[4]) <= int(row[5]) for row in table[1:])
    assert {row[column] for row in table for column in (6, 7, 8)} == {"0"}
    assert re.search(r"^Validation accuracy  0\.9\d\d after \d+ epochs; 0\.9\d\d undisturbed", printed, re.MULTILINE)
    assert "Everything held." in printed
    is_continuous(tmp_path / "demo" / "tensorboard" / "elastic")
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == ["dtf", "tensorboard"]  # no --keep
    its_report(tmp_path)


def its_report(folder: Path) -> None:
    """`dtf report` on the demo's folder, in a browser; its seconds add up, its samples are complete."""
    command = [DTF, "report", folder / "demo", "--output", folder / "report.html"]
    subprocess.run(command, check=True, timeout=DEADLINE, stdout=subprocess.DEVNULL)
    (seen,) = browser.look(folder / "report.html", [browser.View(name="demo", script=LOOK)], folder).values()
    assert (seen.errors, seen.requests) == ([], [])
    assert [chart["title"] for chart in seen.value["charts"] if not chart["marks"]] == []
    assert [chart["title"] for chart in seen.value["charts"]] == TITLES
    assert seen.colors > 20
    assert "every sample once" in seen.value["text"]
    with ResultsStore() as store:
        assert store.sync(folder / "demo").corrupt == []
        assert store.query(BALANCE).fetchall() == []
        assert store.query("SELECT count(*) FROM rescales WHERE pause <= 0").fetchall() == [(0,)]
        assert store.query("SELECT max(generation), count(DISTINCT generation) FROM rescales").fetchall() == [(7, 6)]
        assert store.query("SELECT sum(missing + repeated) FROM audits WHERE complete").fetchall() == [(0,)]


def is_continuous(log: Path) -> None:
    """One version whose loss goes on from step to step, over every change of rank 0."""
    assert [path.name for path in log.iterdir()] == ["version_0"]
    events = EventAccumulator(str(log / "version_0"), size_guidance={"scalars": 0}).Reload()
    steps = [point.step for point in events.Scalars("train/loss")]
    gaps = {later - earlier for earlier, later in pairwise(steps)}
    assert steps[0] == 4
    assert min(gaps) == 5
    assert max(gaps) <= 15  # rank 0 may die between a step and its line in the log
    validations = [point.step for point in events.Scalars("val/accuracy")]
    assert validations == sorted(set(validations))


def test_ctrl_c_ends_all(tmp_path):
    """In the middle of the start of two nodes: 130, one line, no process left (the police looks)."""
    demo = start(tmp_path / "demo")
    printed = ""
    while "start node a" not in printed:
        line = demo.stdout.readline()
        assert line, demo.communicate()[1]
        printed += line
    demo.send_signal(signal.SIGINT)
    _, errors = demo.communicate(timeout=DEADLINE)
    assert demo.returncode == 130
    assert errors == "dtf demo: interrupted; every process that it started has ended\n"
