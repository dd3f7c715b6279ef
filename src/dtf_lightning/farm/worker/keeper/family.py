"""The processes that come from one process, found by who started whom, and signals that reach exactly them.

The keeper is a subreaper: whatever loses its parent becomes the keeper's child, whoever started it. So all that its
attempts have started hangs on the keeper, also what has left its session (`setsid`) or has been forked twice.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

from dtf_lightning.processes.signals import open_pidfd

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
PAGE = os.sysconf("SC_PAGE_SIZE")
TICKS = os.sysconf("SC_CLK_TCK")
ZOMBIE = "Z"

_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> bool:
    """From now on this process is the parent of every descendant whose own parent has ended. `False`: the kernel refuses."""
    return bool(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def end_with_parent() -> None:
    """The kernel sends this process SIGTERM when the thread that started it ends."""
    _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def status(pid: int) -> tuple[str, int, int] | None:
    """State (a letter), parent and session of a process; `None` if it has gone."""
    try:
        # Behind the last parenthesis, because a program's name may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[1]), int(fields[3])
    except (OSError, IndexError, ValueError):
        return None


def children(pid: int) -> set[int]:
    """Of all its threads, those included that have ended and were not waited for."""
    found: set[int] = set()
    try:
        for thread in os.scandir(f"/proc/{pid}/task"):
            with open(f"{thread.path}/children") as file:
                found.update(map(int, file.read().split()))
    except OSError:  # it has gone, or the kernel has no such file
        if not _kernel_tells_children():
            return {other for other in _all() if (seen := status(other)) is not None and seen[1] == pid}
    return found


def descendants(roots: set[int]) -> dict[int, int]:
    """Every process below these, with its parent."""
    found: dict[int, int] = {}
    waiting = list(roots)
    while waiting:
        parent = waiting.pop()
        for pid in children(parent) - found.keys() - roots:
            found[pid] = parent
            waiting.append(pid)
    return found


def is_alive(pid: int) -> bool:
    """Whether the process has not ended; one that nobody has waited for has."""
    seen = status(pid)
    return seen is not None and seen[0] != ZOMBIE


def signal_exactly(pid: int, parent: int, number: signal.Signals) -> None:
    """Send a signal, unless the process has ended and its number has been given to one of another parent."""
    file = open_pidfd(pid)
    if file is None:
        return
    try:
        seen = status(pid)
        if seen is not None and seen[1] in (parent, os.getpid()):  # the keeper's, where the parent has ended meanwhile
            signal.pidfd_send_signal(file, number)
    except OSError:
        pass  # it has ended, or has become another user's
    finally:
        os.close(file)


def signal_all(members: Mapping[int, int], number: signal.Signals, *, group: int) -> None:
    """Send a signal once to each of these processes and to all in a group.

    Args:
        members: process -> its parent.
        number: the signal.
        group: a process group, which gets it at once, with what is just being forked in it; 0: none.
    """
    outside = {pid: parent for pid, parent in members.items() if not group or _group_of(pid) != group}
    if group:
        with contextlib.suppress(OSError):  # all of it has ended
            os.killpg(group, number)
    for pid, parent in outside.items():
        signal_exactly(pid, parent, number)


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except OSError:
        return 0


def resident(pid: int) -> int:
    """Bytes of memory that the process holds now; 0 if it has gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * PAGE
    except (OSError, ValueError, IndexError):
        return 0


def cpu_seconds(pid: int) -> float:
    """Seconds of processor time that the process has taken so far, its threads' too; 0 if it has gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
    except (OSError, ValueError, IndexError):
        return 0.0


def carries(pid: int, mark: str) -> bool:
    """Whether the process was started with the mark (`NAME=value`) in its environment."""
    try:
        return os.fsencode(mark) in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _all() -> Iterator[int]:
    with contextlib.suppress(OSError):
        yield from (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())


def _kernel_tells_children() -> bool:
    return os.path.exists(f"/proc/self/task/{os.getpid()}/children")
