"""These exceptions take a worker out of the training loops without a failure."""

from __future__ import annotations

from typing import NoReturn

from dtf_lightning.processes.quick_end import end_quickly

STOPPED = 143
"""Exit code of a process that SIGTERM ended, so that the agent does not take the exit for success."""


class StopForRescale(Exception):
    """This worker has reached the step boundary that was agreed on for a planned rescale, or was asked to stop."""


class WorkerLeft(SystemExit):
    """This worker's part in the run is over, and the run goes on, or ended, without it: exit code 0."""

    def __init__(self, reason: str, *, run_goes_on: bool = False) -> None:
        super().__init__(0)
        self.reason = reason
        self.run_goes_on = run_goes_on
        """Whether the worker left a run that is not over while it waited for a generation."""


class WorkerStopped(WorkerLeft):
    """A worker of a run in restart mode stops, because it was asked to or lost a peer: exit code `STOPPED`."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.code = STOPPED


def leave(left: WorkerLeft) -> NoReturn:
    """Raise this, in a process that has done its part: when it ends, it ends quickly."""
    end_quickly()
    raise left
