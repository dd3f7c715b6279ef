"""A lifeline whose holder ends when a test says so: what happens to a killed process's, in a process that lives on."""

from __future__ import annotations

import threading

from dtf_lightning.clock import poll_until
from dtf_lightning.processes.lifeline import _DIED, Lifeline

DEADLINE = 60.0
"""Seconds; only a failing test waits this long."""


class Holder:
    """A thread that holds a lifeline."""

    def __init__(self) -> None:
        self._held = threading.Event()
        self._word = threading.Event()
        self._lets_go = False
        self._thread = threading.Thread(target=self._hold, daemon=True, name="holder")
        self._thread.start()
        assert self._held.wait(DEADLINE)

    def _hold(self) -> None:
        self.lifeline = Lifeline()
        self._held.set()
        self._word.wait(DEADLINE)
        if self._lets_go:
            self.lifeline.let_go()

    @property
    def descriptor(self) -> int:
        return self.lifeline.descriptor

    def let_go(self) -> None:
        self._lets_go = True
        self.end()

    def end(self) -> None:
        """Without letting go. Idempotent."""
        if self._word.is_set():
            return
        self._word.set()
        self._thread.join(DEADLINE)
        if not self._lets_go:
            self.lifeline.close_file()
            memory = self.lifeline._memory  # joined is not ended yet: the kernel marks it a moment later, where it is
            poll_until(lambda: memory.word.value & _DIED, DEADLINE, "the mark of the holder's end")
            memory.close()
