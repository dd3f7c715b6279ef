"""What an attempt's first process inherits, so that nothing has to be done between fork and exec.

Where Python code runs between them, all of the keeper's memory has to be forked for it: that was two thirds of what starting
an attempt cost. The keeper has one thread, so it can be for a moment what the new process is to be.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

OOM_SCORE = 500
"""Where the whole machine runs out of memory, an attempt goes before the worker does (`proc(5)`, oom_score_adj)."""
OOM_FILE = "/proc/self/oom_score_adj"


@contextlib.contextmanager
def inherited(cpus: list[int]) -> Iterator[None]:
    """Inside, what is started has an attempt's place when memory is short, and may use these cores only; none: all.

    What the kernel refuses is left as it is. Only a process with one thread may call it.
    """
    own_score = _swap_oom_score(str(OOM_SCORE))
    own_cpus = None
    if cpus:
        with contextlib.suppress(OSError, ValueError):
            before = os.sched_getaffinity(0)
            os.sched_setaffinity(0, cpus)
            own_cpus = before
    try:
        yield
    finally:
        if own_cpus is not None:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, own_cpus)
        if own_score is not None:
            _swap_oom_score(own_score)


def _swap_oom_score(score: str) -> str | None:
    """Set this process's; what it was, or `None` if it is not changed."""
    try:
        file = os.open(OOM_FILE, os.O_RDWR | os.O_CLOEXEC)
        try:
            before = os.pread(file, 16, 0).decode().strip()
            if int(before) == int(score):
                return None
            os.write(file, score.encode())
            return before
        finally:
            os.close(file)
    except (OSError, ValueError):
        return None
