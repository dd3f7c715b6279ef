"""`Progress` shows the progress of a long command in a line on stderr, if stderr is a terminal."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from types import TracebackType
from typing import TextIO

PATIENCE = 0.5
"""Seconds before the line appears, so that quick commands show none."""
INTERVAL = 0.1
"""Seconds between two updates of the line."""


class Progress:
    """Show, inside a `with` block, what is being done, how much of it is done, and for how long; then erase the line.

    Args:
        what: description of the work, such as "run7: 812.0 MiB of events".
        total: full amount of what `advance` counts; 0: unknown.
    """

    def __init__(self, what: str, total: int = 0, *, stream: TextIO | None = None) -> None:
        self._what = what
        self._total = total
        self._done = 0
        self._stream = stream if stream is not None else sys.stderr
        self._over = threading.Event()
        self._began = time.monotonic()
        self._shown = False
        self._thread = threading.Thread(target=self._draw, daemon=True, name="dtf-progress")

    def advance(self, amount: int) -> None:
        """Count `amount` more as done."""
        self._done += amount

    def line(self) -> str:
        """Return the line as it is shown now."""
        seconds = time.monotonic() - self._began
        if not self._total:
            return f"{self._what} … {seconds:.0f} s"
        share = min(1.0, self._done / self._total)
        filled = round(20 * share)
        return f"{self._what} [{'#' * filled}{'.' * (20 - filled)}] {share:4.0%} {seconds:.0f} s"

    def _draw(self) -> None:
        wait = PATIENCE
        while not self._over.wait(wait):
            self._shown, wait = True, INTERVAL
            self._write(f"\r{self.line()[: shutil.get_terminal_size().columns - 1]}\x1b[K")

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._over.set()  # the terminal is gone; the command continues without the line

    def __enter__(self) -> Progress:
        if self._stream.isatty():
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._shown:
            self._write("\r\x1b[K")
