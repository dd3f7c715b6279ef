"""Lines that stay, and below them one that shows what is going on, where there is a terminal to show it on."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

_CLEAR = "\r\x1b[2K"
_SPINNER = "|/-\\"
_REFRESH = 0.1


class Display:
    """Prints to `out`. Without a terminal only what stays is printed, as it comes."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._live = self._out.isatty()
        self._started = time.monotonic()
        self._refreshed = 0.0
        self._turns = 0

    @property
    def elapsed(self) -> float:
        """Seconds since the display was made."""
        return time.monotonic() - self._started

    def say(self, text: str) -> None:
        """A line with the time."""
        self.write(f"{self.elapsed:5.0f} s  {text}")

    def write(self, text: str = "") -> None:
        """Lines without one."""
        print(f"{_CLEAR if self._live else ''}{text}", file=self._out, flush=True)

    def show(self, text: str) -> None:
        """Replace the line at the bottom; several calls at once are one."""
        now = time.monotonic()
        if not self._live or now - self._refreshed < _REFRESH:
            return
        self._refreshed = now
        self._turns += 1
        line = f"{self.elapsed:5.0f} s  {_SPINNER[self._turns % len(_SPINNER)]} {text}"
        width = shutil.get_terminal_size().columns - 1
        print(f"{_CLEAR}{line[:width]}", end="", file=self._out, flush=True)

    def clear(self) -> None:
        """Take the line at the bottom away."""
        if self._live:
            print(_CLEAR, end="", file=self._out, flush=True)
