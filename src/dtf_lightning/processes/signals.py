"""These functions tell how a process ended and what a thread does, list child processes, and signal process groups."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


def open_pidfd(pid: int) -> int | None:
    """Return a file descriptor that can be read once the process has ended; the caller closes it.

    Returns `None` for a process that has already ended or is in another pid namespace, and on kernels without pidfds.
    """
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None


def why_failed(pid: int) -> str:
    """Return how a child of this process failed, such as `exit code 3` or `SIGKILL`; it can still be waited for.

    Returns an empty text if the child runs, ended with exit code 0, or has already been waited for.
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
    """Send a signal to the process, and to its whole group if it leads one that is not this process's own.

    Does nothing for a process that has ended or belongs to another user.
    """
    with contextlib.suppress(OSError):
        if os.getpgid(pid) == pid and pid != os.getpgrp():
            os.killpg(pid, number)
        else:
            os.kill(pid, number)


def children() -> set[int]:
    """Return the ids of the processes that any thread of this one has started and that have not been waited for."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found.update(int(pid) for pid in (task / "children").read_text().split())
    return found


def thread_state(pid: int, thread: int) -> str:
    """Return the letter by which the kernel tells what a thread does: `R` (it runs, or waits for a processor), `S`, `T`, ...

    `thread` is the kernel's identifier (`threading.get_native_id`). See `proc_pid_stat(5)`. Raises `OSError` if there is
    no such thread.
    """
    text = Path(f"/proc/{pid}/task/{thread}/stat").read_text()
    return text.rpartition(")")[2].split()[0]  # behind the program's name, which may itself hold spaces and brackets
