"""What one process can find out about another, and do to its group."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from dtf_lightning.processes.signals import children, open_pidfd, signal_group, why_failed

PATIENCE = 60.0
"""Seconds; only a failing test waits this long."""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts shells; all are gone when the test is over."""
    made: list[subprocess.Popen[bytes]] = []

    def start(command: str, **options: object) -> subprocess.Popen[bytes]:
        made.append(subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, **options))  # type: ignore[call-overload]
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.wait()
        process.stdout.close()


def wait_for_end(pid: int) -> None:
    """Until the process has ended; nobody has waited for it yet."""
    pidfd = open_pidfd(pid)
    assert pidfd is not None
    assert select.select([pidfd], [], [], PATIENCE)[0]
    os.close(pidfd)


@pytest.mark.parametrize(
    ("command", "why"), [("exit 0", ""), ("exit 3", "exit code 3"), ("kill -KILL $$", "SIGKILL")], ids=str
)
def test_why_a_child_failed(start, command, why):
    """It is told without taking the exit code from its parent."""
    process = start(command)
    wait_for_end(process.pid)
    assert (why_failed(process.pid), why_failed(process.pid)) == (why, why)
    process.wait()
    assert why_failed(process.pid) == ""


def test_a_process_that_is_gone(start):
    """Nothing to watch, nothing to signal, no error."""
    process = start("exit 0")
    process.wait()
    assert open_pidfd(process.pid) is None
    signal_group(process.pid, signal.SIGKILL)


def test_a_signal_reaches_the_group_of_its_leader(start):
    """The leader of a session and what it started both end."""
    process = start("sleep 600 & echo $!; wait", start_new_session=True)
    started = int(process.stdout.readline())
    pidfd = open_pidfd(started)
    signal_group(process.pid, signal.SIGKILL)
    assert process.wait(PATIENCE) == -signal.SIGKILL
    assert select.select([pidfd], [], [], PATIENCE)[0]
    os.close(pidfd)


def test_a_signal_spares_the_others_of_a_group(start):
    """A process that leads no group gets the signal alone: this test, of the same group, goes on."""
    process = start("exec sleep 600")
    signal_group(process.pid, signal.SIGKILL)
    assert process.wait(PATIENCE) == -signal.SIGKILL


def test_children(start):
    """A child is listed until it was waited for."""
    process = start("exit 0")
    assert process.pid in children()
    process.wait()
    assert process.pid not in children()
