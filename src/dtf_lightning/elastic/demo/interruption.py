"""Ctrl-C and SIGTERM, taken where nothing can be lost.

A `KeyboardInterrupt` between the start of a process and the line that notes its pid would leave it running, one in the
middle of ending the processes would leave all of them. So the signal is noted, and every wait looks.
"""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType

POLL = 0.05
"""Seconds between two looks at whatever is waited for."""

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """A context manager, for the main thread; inside, signals end only `pause`."""

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
        """Wait for a moment. Raises `KeyboardInterrupt` when asked to end, now or before."""
        time.sleep(seconds)
        if self._asked:
            raise KeyboardInterrupt

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self._asked = True  # no lock, no event: this may run in the middle of anything
