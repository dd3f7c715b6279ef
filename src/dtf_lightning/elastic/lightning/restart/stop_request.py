"""Where no agent of ours started the worker, only signals tell it anything: that it is to stop."""

from __future__ import annotations

import threading


class StopRequest:
    """Whether this worker was asked to stop. `ask` belongs to signal handlers, the rest to the main thread."""

    def __init__(self) -> None:
        self.reason = ""
        """Why this worker stops; empty while it does not."""
        self._asked = threading.Event()

    def ask(self, reason: str) -> None:
        """Stop at the next boundary. Safe in a signal handler; the first reason counts."""
        self.reason = self.reason or reason
        self._asked.set()

    def asked(self) -> bool:
        return bool(self.reason)

    def wait(self, timeout: float) -> bool:
        """Whether somebody asks this worker to stop within so many seconds."""
        return self._asked.wait(timeout)
