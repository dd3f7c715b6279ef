"""Stops processes by SIGSTOP, for certain: for tests, and for demonstrations of what a frozen machine does."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from dtf_lightning.clock import poll_until
from dtf_lightning.processes.signals import thread_state

PATIENCE = 60.0


def freeze(pid: int) -> None:
    """Stop process `pid`; returns when none of its threads runs any more.

    `kill` returns as soon as the signal is pending: on a busy machine a thread of the process may go on for some time, and
    a server may still answer. A thread that waits in the kernel for its disk stops after that.

    Raises:
        TimeoutError: a thread still ran after `PATIENCE` seconds.
    """
    os.kill(pid, signal.SIGSTOP)
    poll_until(lambda: _is_stopped(pid), PATIENCE, f"all threads of process {pid} to stop")


def _is_stopped(pid: int) -> bool:
    return all(thread_state(pid, int(thread.name)) == "T" for thread in Path(f"/proc/{pid}/task").iterdir())
