"""Tells whether a thread waits in a collective that nothing will end, although its process group was cut.

gloo can forget a waiter when a peer dies in the middle of a transfer (see `process_group.py`), and nothing can wake it.
From outside it is told from a thread that is busy, or that waits for something of the user's, by three signs, all of
which have to last: it is in one and the same call, this call is one of torch's that wait for collectives, and the
thread uses no processor time.
"""

from __future__ import annotations

import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import torch

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
_IDLE = 0.001
"""Seconds of processor time that a waiting thread uses at most."""


@dataclass(frozen=True, kw_only=True)
class _Sight:
    """What is seen of a thread at one moment."""

    call: tuple[int, int, str]
    processor_time: float
    """Seconds."""


def _look_at(thread: int) -> _Sight | None:
    frame = sys._current_frames().get(thread)
    if frame is None:
        return None
    call = id(frame), frame.f_lasti, frame.f_code.co_filename
    return _Sight(call=call, processor_time=time.clock_gettime(time.pthread_getcpuclockid(thread)))


def is_forgotten(thread: int, seconds: float, left: threading.Event) -> bool:
    """Watch a thread; return whether all signs last for `seconds`. False as soon as one does not, or `left` is set.

    `thread` is the identifier that `threading.get_ident` returned in a thread that lives.
    """
    first = _look_at(thread)
    if first is None or first.call[2] not in _WAITS:
        return False
    end = time.monotonic() + seconds
    while (now := time.monotonic()) < end:
        if left.wait(min(end - now, seconds / 10)):
            return False
        seen = _look_at(thread)
        if seen is None or seen.call != first.call or seen.processor_time - first.processor_time > _IDLE:
            return False
    return True
