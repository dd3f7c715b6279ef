"""Tells whether a thread waits in a collective that nothing will end, although its process group was cut.

gloo can forget a waiter when a peer dies in the middle of a transfer (see `process_group.py`), and nothing can wake it.
From outside it is told from a thread that is busy, or that waits for something of the user's, by four signs, all of
which have to last: it is in one and the same call, this call is one of torch's that wait for collectives, and the
thread sleeps and uses no processor time. A thread that gets no processor on a busy machine does not sleep.

The signs are looked for so many times, not for so many seconds: where this very process gets no processor, the time
passes and nothing is seen of the thread, which has had no turn to come out of its call either.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from dtf_lightning.processes.signals import thread_state

_TORCH = Path(torch.__file__).parent
_WAITS = frozenset(
    {
        str(_TORCH / "distributed" / "distributed_c10d.py"),
        str(_TORCH / "nn" / "parallel" / "distributed.py"),
        str(_TORCH / "autograd" / "graph.py"),  # DDP waits at the end of a backward pass, in C++
        str(Path(__file__).parent / "state_transfer.py"),
    }
)
"""The files in which the innermost Python function lies of a thread that waits for a collective."""
_SLEEPS = frozenset("SD")
"""The kernel's letters for a thread that waits for something other than a processor."""
_IDLE = 0.001
"""Seconds of processor time that a waiting thread uses at most."""
_LOOKS = 10
"""Number of looks at a thread, after the first one."""


@dataclass(frozen=True, kw_only=True)
class _Sight:
    """What is seen of a thread that sleeps, at one moment."""

    call: tuple[int, int, str]
    processor_time: float
    """Seconds."""


def _look_at(thread: int) -> _Sight | None:
    frame = sys._current_frames().get(thread)
    native_id = _native_id(thread)
    if frame is None or native_id is None:
        return None
    try:
        if thread_state(os.getpid(), native_id) not in _SLEEPS:
            return None
    except OSError:  # it has ended
        return None
    call = id(frame), frame.f_lasti, frame.f_code.co_filename
    return _Sight(call=call, processor_time=time.clock_gettime(time.pthread_getcpuclockid(thread)))


def _native_id(thread: int) -> int | None:
    """Return the kernel's identifier of a thread; `None` if there is no such thread.

    A process's first thread has its process id. In a forked process (restart mode's warm spares are such) Python goes on
    telling the parent's (seen with 3.11).
    """
    if thread == threading.main_thread().ident:
        return os.getpid()
    return next((each.native_id for each in threading.enumerate() if each.ident == thread), None)


def is_forgotten(thread: int, seconds: float, left: threading.Event) -> bool:
    """Watch a thread for `seconds`, or longer where this process is slow; return whether all signs last.

    False as soon as one does not, or `left` is set. `thread` is the identifier that `threading.get_ident` returned in a thread that lives.
    """
    first = _look_at(thread)
    if first is None or first.call[2] not in _WAITS:
        return False
    for _ in range(_LOOKS):
        if left.wait(seconds / _LOOKS):
            return False
        seen = _look_at(thread)
        if seen is None or seen.call != first.call or seen.processor_time - first.processor_time > _IDLE:
            return False
    return True
