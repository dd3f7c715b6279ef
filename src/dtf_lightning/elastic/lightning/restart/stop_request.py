"""`StopRequest` keeps a signal's request to stop, all that an agent tells a worker in restart mode."""

from __future__ import annotations

import threading


class StopRequest:
    """Keep whether this worker was asked to stop. Signal handlers call `ask`, the main thread calls the rest."""

    def __init__(self) -> None:
        self.reason = ""
        """Reason why this worker stops; empty while it was not asked to."""
        self._woken = threading.Event()

    def ask(self, reason: str) -> None:
        """Ask this worker to stop at the next boundary. Safe in a signal handler; the first reason is kept."""
        self.reason = self.reason or reason
        self._woken.set()

    def asked(self) -> bool:
        return bool(self.reason)

    def wake(self) -> None:
        """End the wait of the main thread, because something else has happened."""
        self._woken.set()

    def wait(self, timeout: float) -> bool:
        """Tell whether this worker is asked to stop within `timeout` seconds, or until `wake` is called."""
        self._woken.wait(timeout)
        return self.asked()
