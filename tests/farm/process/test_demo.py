"""`dtf farm demo --fast`, as a user starts it."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from dtf_lightning.farm.testkit.leftovers import processes_of

pytestmark = pytest.mark.process


def test_it_is_played_and_its_books_balance(tmp_path):
    """The leader, an etcd member and a worker are killed, another worker is frozen; two tasks run twice, all are recorded once."""
    folder = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "dtf_lightning", "farm", "demo", "--fast", "--folder", str(folder)],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = re.search(r"^accepted (\d+), recorded (\d+) once, executed twice (\d+)$", done.stdout, re.MULTILINE)
    assert told is not None, done.stdout
    assert (told[1], told[2]) == ("22", "22")
    assert int(told[3]) >= 2
    for act in (
        "the leading coordinator",
        "the leading etcd member",
        "in mid-task",
        "freeze the worker",
        "is up at http://",
    ):
        assert act in done.stdout
    for why in ("was killed", "stood still"):
        assert re.search(rf"^benchmark .* 2 +w\d, w\d +w\d {why} +completed$", done.stdout, re.MULTILINE), done.stdout
    assert processes_of(folder) == {}


@pytest.mark.chaos
def test_a_training_lends_a_device_at_its_end(tmp_path):
    """The whole demo; its books have the training's parts, too."""
    folder = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "dtf_lightning", "farm", "demo", "--folder", str(folder)],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for act in (
        "a training fills half",
        "a suite arrives",
        "after it was asked for",
        "the suite has ended; the training",
    ):
        assert act in done.stdout
    assert re.search(r"^accepted 28, recorded 28 once", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^the training: lent a device .*, 0 samples lost, 0 repeated$", done.stdout, re.MULTILINE)
    assert processes_of(folder) == {}
