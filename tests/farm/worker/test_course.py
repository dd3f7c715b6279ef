"""The decisions about one attempt's processes, step by step on a clock of the test's."""

from __future__ import annotations

import os
import signal

import pytest

from dtf_lightning.farm.worker.keeper.course import (
    KILL_PATIENCE,
    LEFTOVER_GRACE,
    Action,
    Course,
    Stage,
    could_not_start,
)


def course(*, timeout=None, grace=5.0, memory=None) -> Course:
    return Course(started=100.0, timeout=timeout, grace=grace, memory=memory)


def killed_by(number: int) -> int:
    return int(number)


def exited(code: int) -> int:
    return code << 8


def test_statuses_are_the_kernels():
    assert os.waitstatus_to_exitcode(exited(3)) == 3
    assert os.waitstatus_to_exitcode(killed_by(9)) == -9


@pytest.mark.parametrize(
    ("status", "oom_kills", "verdict"),
    [
        (exited(0), 0, ("completed", "exit code 0")),
        (exited(0), 1, ("completed", "exit code 0")),
        (exited(3), 0, ("failed", "exit code 3")),
        (exited(3), 1, ("failed", "exit code 3, after 1 process of it was killed for its memory limit of 64 MiB")),
        (killed_by(signal.SIGKILL), 1, ("failed", "killed for its memory limit of 64 MiB")),
        (killed_by(signal.SIGKILL), 0, ("failed", "ended by SIGKILL")),
        (killed_by(signal.SIGTERM), 0, ("failed", "ended by SIGTERM")),
        (killed_by(signal.SIGRTMIN + 3), 0, ("failed", f"ended by signal {signal.SIGRTMIN + 3}")),
    ],
)
def test_it_ends_by_itself(status, oom_kills, verdict):
    it = course(timeout=10.0, memory=64 << 20)
    assert it.next(101.0, 1) is Action.WAIT
    it.first_ended(status)
    assert it.next(101.0, 0) is Action.FINISH
    assert it.verdict(oom_kills=oom_kills) == verdict


def test_a_timeout():
    """Asked at its timeout, killed after its grace, over when nothing is left."""
    it = course(timeout=10.0)
    assert it.deadline() == 110.0
    assert it.next(109.9, 1) is Action.WAIT
    assert it.next(110.0, 1) is Action.ASK
    assert (it.stage, it.deadline()) == (Stage.ASKED, 115.0)
    it.first_ended(killed_by(signal.SIGTERM))
    assert it.next(112.0, 1) is Action.WAIT
    assert it.next(115.0, 1) is Action.KILL
    assert it.next(115.1, 1) is Action.KILL  # a child that was just being started
    assert it.next(115.2, 0) is Action.FINISH
    assert it.verdict() == ("timeout", "ended by its timeout of 10 s")


def test_the_first_cause_counts():
    it = course(timeout=10.0)
    it.stop("cancelled", "cancelled")
    it.stop("lost", "too late")
    it.exceeded_memory()
    assert it.next(120.0, 1) is Action.ASK
    it.first_ended(exited(0))
    assert it.next(121.0, 0) is Action.FINISH
    assert it.verdict() == ("cancelled", "cancelled")


def test_what_has_ended_is_not_cancelled():
    it = course()
    it.first_ended(exited(0))
    it.stop("cancelled", "cancelled")
    assert it.next(101.0, 0) is Action.FINISH
    assert it.verdict() == ("completed", "exit code 0")


def test_no_grace_is_sigkill_at_once():
    it = course()
    it.stop("lost", "the worker ends", 0.0)
    assert it.next(101.0, 1) is Action.KILL


def test_memory_is_sigkill_at_once():
    it = course(memory=64 << 20)
    it.exceeded_memory()
    assert it.next(101.0, 1) is Action.KILL
    it.first_ended(killed_by(signal.SIGKILL))
    assert it.next(101.0, 0) is Action.FINISH
    assert it.verdict(oom_kills=1) == ("failed", "killed for its memory limit of 64 MiB")


@pytest.mark.parametrize("grace", [60.0, 1.0])
def test_what_is_left_running(grace):
    """It has a short grace, and the attempt ends as its first process did."""
    it = course(grace=grace)
    it.first_ended(exited(0))
    assert it.next(101.0, 2) is Action.ASK
    assert it.deadline() == 101.0 + min(grace, LEFTOVER_GRACE)
    assert it.next(101.0 + LEFTOVER_GRACE, 1) is Action.KILL
    assert it.next(104.0, 0) is Action.FINISH
    assert it.verdict() == ("completed", "exit code 0; 2 processes that it had left running were ended")


def test_what_cannot_be_killed():
    """A process that waits for a disk: the attempt is over all the same, and says so."""
    it = course()
    it.stop("cancelled", "cancelled", 0.0)
    assert it.next(101.0, 1) is Action.KILL
    assert it.next(101.0 + KILL_PATIENCE, 1) is Action.FINISH
    assert it.verdict() == ("cancelled", "cancelled; 1 process did not end within 10 s of SIGKILL")
    assert it.status is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            FileNotFoundError(2, "No such file or directory", "x"),
            (127, "its command cannot be started: No such file or directory: x"),
        ),
        (PermissionError(13, "Permission denied", "x"), (126, "its command cannot be started: Permission denied: x")),
        (
            NotADirectoryError(20, "Not a directory", "/w"),
            (127, "its working folder cannot be used: Not a directory: /w"),
        ),
    ],
)
def test_why_it_could_not_be_started(error, expected):
    assert could_not_start(error, "x", "/w") == expected
