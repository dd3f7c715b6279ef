"""The process that ends what carries a mark when its owner is killed."""

from __future__ import annotations

import os
import subprocess
import uuid

import pytest

from dtf_lightning.processes.watchdog_process import Watchdog

PATIENCE = 60.0
"""Seconds; only a failing test waits this long."""


@pytest.fixture
def mark() -> tuple[str, str]:
    return "WATCHED_BY_TEST", uuid.uuid4().hex


@pytest.fixture
def make(mark):
    """Makes one, and ends it."""
    made = []

    def make(**options: float) -> Watchdog:
        made.append(Watchdog(*mark, **options))
        return made[-1]

    yield make
    for watchdog in made:
        watchdog._process.kill()
        watchdog._process.wait()
        watchdog.close()


def start(command: str, **options: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sh", "-c", command], stdin=subprocess.PIPE, **options)  # type: ignore[call-overload]


def test_what_was_being_started_is_ended_too(make, mark):
    """Its owner is killed while it starts a process, which gets the mark only after the others have been ended."""
    variable, value = mark
    watchdog = make(linger=600.0)
    marked = start("exec sleep 600", env={**os.environ, variable: value})
    late = start(f"read line; export {variable}={value}; exec sleep 600")
    watchdog._process.stdin.close()  # no goodbye
    assert marked.wait(PATIENCE) == -9
    late.communicate(b"go\n", PATIENCE)
    assert late.returncode == -9
    marked.stdin.close()


def test_it_ends_when_nothing_is_left(make, mark):
    variable, value = mark
    watchdog = make()
    marked = start("exec sleep 600", env={**os.environ, variable: value})
    watchdog._process.stdin.close()
    assert marked.wait(PATIENCE) == -9
    marked.stdin.close()
    assert watchdog._process.wait(PATIENCE) == 0


def test_after_a_goodbye_nobody_is_ended(make, mark):
    """The owner has ended its processes itself; what still carries the mark is left alone."""
    variable, value = mark
    watchdog = make()
    marked = start("exec sleep 600", env={**os.environ, variable: value})
    watchdog.close()
    watchdog.close()
    assert watchdog._process.returncode == 0
    assert marked.poll() is None
    marked.kill()
    marked.communicate()
