"""This process's end of its watchdog: starting it, and telling it that all is well."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

from dtf_lightning import environment
from dtf_lightning.processes import watchdog

CLOSE_TIMEOUT = 5.0
"""Seconds; it needs milliseconds."""


class Watchdog:
    """The process that ends everything with a mark in its environment if this process is killed.

    Args:
        variable, value: the mark. The watchdog itself does not get the variable.
    """

    def __init__(self, variable: str, value: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(watchdog.__file__)), f"{variable}={value}"],
            stdin=subprocess.PIPE,
            start_new_session=True,  # the terminal's signals are not for it
            env=environment.for_child({}, without_prefix=variable),
        )

    def close(self) -> None:
        """Say that the marked processes have been ended, and wait for the watchdog's own end. Idempotent."""
        assert self._process.stdin is not None
        if not self._process.stdin.closed:
            with contextlib.suppress(OSError):
                self._process.stdin.write(watchdog.GOODBYE)
                self._process.stdin.close()
            self._process.wait(CLOSE_TIMEOUT)
