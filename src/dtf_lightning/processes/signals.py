"""Other processes, by their id: how one ended, whose children they are, and signals to whole groups."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def open_pidfd(pid: int) -> int | None:
    """A file that can be read once the process has ended; the caller closes it.

    `None` for a process that is gone already or lives in another pid namespace, and where the kernel has no such files.
    """
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def why_failed(pid: int) -> str:
    """How a child of this process failed: `exit code 3`, `SIGKILL`; its parent can still wait for it.

    Empty when it lives, ended well, or has been waited for already.
    """
    try:
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        return ""
    if result is None or (result.si_code == os.CLD_EXITED and result.si_status == 0):
        return ""
    if result.si_code == os.CLD_EXITED:
        return f"exit code {result.si_status}"
    return signal.Signals(result.si_status).name


def signal_group(pid: int, number: signal.Signals) -> None:
    """Send a signal to the process, and to its whole group where it leads one that is not this process's own.

    Does nothing for a process that has ended or is somebody else's.
    """
    with contextlib.suppress(OSError):
        if os.getpgid(pid) == pid and pid != os.getpgrp():
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def children() -> set[int]:
    """The processes that this one has started, from any of its threads, and that have not been waited for."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found.update(int(pid) for pid in (task / "children").read_text().split())
    return found
