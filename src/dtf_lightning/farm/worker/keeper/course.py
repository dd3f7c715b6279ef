"""`Course` decides what is to be done with an attempt's processes, and in the end says how it ended. It is pure.

Rules that this file guards:

* an attempt is over when its first process has ended and none of the others is left;
* whatever is to end is asked first (SIGTERM), all of it at once, and killed after its grace, again and again until it
  is gone; what exceeds its memory is killed at once;
* what an attempt's first process leaves running is ended with it;
* after `KILL_PATIENCE` an attempt is over even if a process cannot be killed (it waits for a device or a disk), and says so;
* the first reason to end it is the one that is told: what ended by itself before has ended by itself.
"""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from enum import Enum

LEFTOVER_GRACE = 2.0
"""Seconds, at most, that what an attempt leaves running has between SIGTERM and SIGKILL."""
KILL_PATIENCE = 10.0
"""Seconds after SIGKILL."""
NOT_FOUND, NOT_EXECUTABLE = 127, 126
"""Exit codes that a shell gives for commands that cannot be started."""


class Stage(Enum):
    """What an attempt is at."""

    RUNNING = "running"
    ASKED = "asked"
    KILLED = "killed"
    OVER = "over"


class Action(Enum):
    """What is to be done."""

    WAIT = "wait"
    ASK = "ask"
    KILL = "kill"
    FINISH = "finish"


@dataclass(frozen=True)
class Cause:
    """Why an attempt is ended from outside."""

    kind: str
    reason: str
    grace: float


class Course:
    """The course of one attempt. `now` is in monotonic seconds.

    Args:
        timeout: seconds from `started` on; `None`: no limit.
        grace: seconds between SIGTERM and SIGKILL.
        memory: its limit in bytes, for the text; `None`: no limit.
    """

    def __init__(self, *, started: float, timeout: float | None, grace: float, memory: int | None) -> None:
        self.stage = Stage.RUNNING
        self._timeout_at = None if timeout is None else started + timeout
        self._timeout = (
            Cause("timeout", f"ended by its timeout of {timeout:g} s", grace) if timeout is not None else None
        )
        self._grace = grace
        self._memory = memory
        self._deadline: float | None = None
        self._cause: Cause | None = None
        self._status: int | None = None
        self._num_left = self._num_stuck = 0

    def stop(self, kind: str, reason: str, grace: float | None = None) -> None:
        """Somebody wants it to end. Does nothing if it is being ended already, or has ended by itself."""
        if self._cause is None and self._status is None:
            self._cause = Cause(kind, reason, self._grace if grace is None else grace)

    def exceeded_memory(self) -> None:
        """It holds more memory than it may, or the kernel has killed one of its processes for that."""
        if self._cause is None and self._status is None:
            self._cause = Cause("failed", f"killed for its memory limit of {_mebibytes(self._memory)}", 0.0)

    def first_ended(self, status: int) -> None:
        """Its first process has ended, with this wait status."""
        self._status = status

    @property
    def asks_first_only(self) -> bool:
        """Whether its first process alone is asked to end, and sees to the others: a `torchrun` that leaves its run."""
        return self._cause is not None and self._cause.kind == "yielded" and self.first_runs

    @property
    def first_runs(self) -> bool:
        return self._status is None

    def deadline(self) -> float | None:
        """When something is to be done even if nothing happens."""
        return self._timeout_at if self.stage is Stage.RUNNING and self._cause is None else self._deadline

    def next(self, now: float, num_alive: int) -> Action:
        """What is to be done now; `num_alive`: how many of its processes there are, the first one included."""
        if self.stage is Stage.RUNNING and self.first_runs and self._timeout_at is not None and now >= self._timeout_at:
            self._cause = self._cause or self._timeout
        if not self.first_runs and num_alive == 0:
            return self._over()
        if self.stage is Stage.RUNNING:
            return self._end_it(now, num_alive)
        if self._deadline is not None and now >= self._deadline:
            return self._kill(now) if self.stage is Stage.ASKED else self._over(num_alive)
        # Processes that were being started when the others were killed are killed as soon as they are seen.
        return Action.KILL if self.stage is Stage.KILLED else Action.WAIT

    def _end_it(self, now: float, num_alive: int) -> Action:
        if self._cause is not None:
            grace = self._cause.grace
        elif not self.first_runs:
            self._num_left, grace = num_alive, min(self._grace, LEFTOVER_GRACE)
        else:
            return Action.WAIT
        if grace <= 0:
            return self._kill(now)
        self.stage, self._deadline = Stage.ASKED, now + grace
        return Action.ASK

    def _kill(self, now: float) -> Action:
        self.stage, self._deadline = Stage.KILLED, now + KILL_PATIENCE
        return Action.KILL

    def _over(self, num_stuck: int = 0) -> Action:
        self.stage, self._deadline = Stage.OVER, None
        self._num_stuck = num_stuck
        return Action.FINISH

    def verdict(self, *, oom_kills: int = 0) -> tuple[str, str]:
        """Kind and reason. `oom_kills`: processes that the kernel has killed for the attempt's memory limit."""
        assert self.stage is Stage.OVER
        kind, reason = self._by_itself(oom_kills) if self._cause is None else (self._cause.kind, self._cause.reason)
        if self._num_left:
            reason += f"; {_processes(self._num_left)} that it had left running {_were(self._num_left)} ended"
        if self._num_stuck:
            reason += f"; {_processes(self._num_stuck)} did not end within {KILL_PATIENCE:g} s of SIGKILL"
        return kind, reason

    @property
    def status(self) -> int | None:
        """Wait status of the first process; `None` if it did not even end by SIGKILL."""
        return self._status

    def _by_itself(self, oom_kills: int) -> tuple[str, str]:
        assert self._status is not None
        code = os.waitstatus_to_exitcode(self._status)
        limit = _mebibytes(self._memory)
        if code == 0:
            return "completed", "exit code 0"
        if oom_kills and code == -signal.SIGKILL:
            return "failed", f"killed for its memory limit of {limit}"
        reason = f"exit code {code}" if code > 0 else f"ended by {_name(-code)}"
        if oom_kills:
            reason += f", after {_processes(oom_kills)} of it {_were(oom_kills)} killed for its memory limit of {limit}"
        return "failed", reason


def could_not_start(error: OSError, command: str, folder: str) -> tuple[int, str]:
    """Exit code and reason for a command that could not be started."""
    if error.filename == folder:
        return NOT_FOUND, f"its working folder cannot be used: {error.strerror}: {folder}"
    code = NOT_FOUND if isinstance(error, FileNotFoundError | NotADirectoryError) else NOT_EXECUTABLE
    return code, f"its command cannot be started: {error.strerror}: {command}"


def _mebibytes(size: int | None) -> str:
    return f"{(size or 0) / 2**20:g} MiB"


def _processes(number: int) -> str:
    return f"{number} process{'' if number == 1 else 'es'}"


def _were(number: int) -> str:
    return "was" if number == 1 else "were"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
