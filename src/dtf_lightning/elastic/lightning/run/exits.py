"""Why a worker leaves the training loops without a failure."""

from __future__ import annotations

STOPPED = 143
"""Exit code, as of a process that SIGTERM has ended: the agent must not take it for success."""


class StopForRescale(Exception):
    """The agreed step boundary of a planned rescale is reached."""


class WorkerLeft(SystemExit):
    """This worker's part in the run is over and the run goes on, or ended, without it: exit code 0."""

    def __init__(self, reason: str) -> None:
        super().__init__(0)
        self.reason = reason


class WorkerStopped(WorkerLeft):
    """This worker, of a run whose workers are started anew, was asked to stop and has written what it has to."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.code = STOPPED
