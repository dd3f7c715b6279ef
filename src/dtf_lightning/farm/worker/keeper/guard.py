"""This program starts a keeper and waits for its end: a keeper that is killed takes all that its attempts have started with it.

    python guard.py FOLDER SOCKET PATIENCE [rlimit]      the arguments are the keeper's

Rules that this file guards:

* It is a subreaper above the keeper: what the keeper was the parent of becomes its child when the keeper has ended,
  whatever it has done to its session and its environment, and is killed. While the keeper is there it does nothing.
* It never ends before the keeper, unless it is killed; the keeper then ends its attempts and itself (`__main__.py`).
* It ends when nothing is left. A process that cannot be killed (it waits for a device or a disk) keeps it, until the worker gives up.

A parent-death signal of each attempt did a part of this. It can only be asked for between fork and exec, and a fork of Python
costs three times what a small program does. It is started by path: it imports little, and nothing of this package.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

KEEPER = "dtf_lightning.farm.worker.keeper"
PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> int:
    """Return the keeper's exit code."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    command = [sys.executable, "-P", "-m", KEEPER, *arguments]
    keeper = os.fork()
    if not keeper:
        os.execv(sys.executable, command)
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # the keeper gets its own
        signal.signal(ignored, signal.SIG_IGN)
    os.close(int(arguments[1]))  # the worker must see the keeper's end
    pid, status = os.wait()
    while pid != keeper:
        pid, status = os.wait()
    with contextlib.suppress(ChildProcessError):
        while True:  # until no child is left; what is started meanwhile is the child of one that is killed, or ours
            for pid in below(os.getpid()):
                with contextlib.suppress(OSError):  # it has ended
                    os.kill(pid, signal.SIGKILL)
            os.wait()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def below(pid: int) -> list[int]:
    """Every process below this one."""
    found = children(pid)
    for child in found:
        found += children(child)
    return found


def children(pid: int) -> list[int]:
    """Of all its threads; `/proc` is searched where the kernel has no list."""
    try:
        found: list[int] = []
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
        return found
    except OSError:
        if os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
            return []
        return [int(name) for name in os.listdir("/proc") if name.isdigit() and parent_of(name) == pid]


def parent_of(pid: str) -> int:
    """0 if it has gone."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
