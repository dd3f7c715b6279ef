"""`Watchdog` starts this process's watchdog program, and tells it when its work is not needed any more."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

from dtf_lightning import environment
from dtf_lightning.processes import watchdog

CLOSE_TIMEOUT = 30.0
"""Seconds that `close` waits for the watchdog's end, which takes milliseconds."""


class Watchdog:
    """Run a process that ends all processes with a mark in their environment if this process is killed.

    Args:
        variable, value: the mark. The watchdog itself does not get the variable.
        linger: seconds for which it goes on checking after this process's end.
    """

    def __init__(self, variable: str, value: str, linger: float = watchdog.LINGER) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(watchdog.__file__)), f"{variable}={value}", str(linger)],
            stdin=subprocess.PIPE,
            start_new_session=True,  # so that signals from the terminal do not reach it
            env=environment.for_child({}, without_prefix=variable),
        )

    def close(self) -> None:
        """Tell the watchdog that the marked processes have been ended, and wait for its own end. Idempotent."""
        assert self._process.stdin is not None
        if not self._process.stdin.closed:
            with contextlib.suppress(OSError):
                self._process.stdin.write(watchdog.GOODBYE)
                self._process.stdin.close()
            self._process.wait(CLOSE_TIMEOUT)
