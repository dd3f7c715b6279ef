"""`Display` prints lines that stay, and below them, on a terminal, one that shows what is happening now."""

from __future__ import annotations

import shutil
import sys
from typing import TextIO

from dtf_lightning.clock import Clock, SystemClock

_CLEAR = "\r\x1b[2K"
_SPINNER = "|/-\\"
_REFRESH = 0.1


class Display:
    """Print lines to `out`. If it is not a terminal, only the lines that stay are printed."""

    def __init__(self, out: TextIO | None = None, clock: Clock | None = None) -> None:
        self._out = out or sys.stdout
        self._clock = clock or SystemClock()
        self._live = self._out.isatty()
        self._started = self._clock.monotonic()
        self._refreshed = 0.0
        self._turns = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the display was made."""
        return self._clock.monotonic() - self._started

    def say(self, text: str) -> None:
        """Print a line that stays, with the seconds since the display was made."""
        self.write(f"{self.elapsed:5.0f} s  {text}")

    def write(self, text: str = "") -> None:
        """Print lines that stay, without the time."""
        print(f"{_CLEAR if self._live else ''}{text}", file=self._out, flush=True)

    def show(self, text: str) -> None:
        """Replace the line at the bottom, at most every 0.1 s."""
        now = self._clock.monotonic()
        if not self._live or now - self._refreshed < _REFRESH:
            return
        self._refreshed = now
        self._turns += 1
        line = f"{self.elapsed:5.0f} s  {_SPINNER[self._turns % len(_SPINNER)]} {text}"
        width = shutil.get_terminal_size().columns - 1
        print(f"{_CLEAR}{line[:width]}", end="", file=self._out, flush=True)

    def clear(self) -> None:
        """Remove the line at the bottom."""
        if self._live:
            print(_CLEAR, end="", file=self._out, flush=True)
