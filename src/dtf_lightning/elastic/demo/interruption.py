"""`Interruption` handles Ctrl-C and SIGTERM only at places where no process can be left running.

A `KeyboardInterrupt` between the start of a process and the line that stores its pid would leave it running, and one in
the middle of ending the processes would leave all of them. So the handler only sets a flag, which every wait checks.
"""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType

POLL = 0.05
"""Seconds between two checks of a condition that is waited for."""

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Delay signals inside a `with` block of the main thread: they interrupt only `pause`."""

    def __init__(self) -> None:
        self._asked = False

    def __enter__(self) -> Interruption:
        self._previous = [signal.signal(number, self._note) for number in _NUMBERS]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in zip(_NUMBERS, self._previous, strict=True):
            signal.signal(number, handler)

    def pause(self, seconds: float = POLL) -> None:
        """Wait for some seconds. Raises `KeyboardInterrupt` if a signal has come, now or before."""
        time.sleep(seconds)
        if self._asked:
            raise KeyboardInterrupt

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True  # no lock and no event, because a signal handler may run in the middle of any code
