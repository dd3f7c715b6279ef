"""`StopRequest` keeps a signal's request to stop, the only message that reaches a worker in restart mode."""

from __future__ import annotations

import threading


class StopRequest:
    """Keep whether this worker was asked to stop. Signal handlers call `ask`, the main thread calls the rest."""

    def __init__(self) -> None:
        self.reason = ""
        """Reason why this worker stops; empty while it was not asked to."""
        self._asked = threading.Event()

    def ask(self, reason: str) -> None:
        """Ask this worker to stop at the next boundary. Safe in a signal handler; the first reason is kept."""
        self.reason = self.reason or reason
        self._asked.set()

    def asked(self) -> bool:
        return bool(self.reason)

    def wait(self, timeout: float) -> bool:
        """Tell whether this worker is asked to stop within `timeout` seconds."""
        return self._asked.wait(timeout)
