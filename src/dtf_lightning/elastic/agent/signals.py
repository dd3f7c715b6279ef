"""Signals at an agent: the first SIGTERM or SIGINT lets its node leave, the second stops it; SIGUSR1 only leaves.

Slurm's `--signal=USR1@120` is a warning, which SIGTERM follows: that one is then the first, not the second.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from torch.distributed.elastic.multiprocessing.api import SignalException

from dtf_lightning import environment


class LeaveOnSignal:
    """Signal handlers in the place of torchelastic's, which installs its own for the signals that its variable lists.

    Args:
        text: what the first signal tells the user.
        leave: called with the signal's name.
        end_workers: called with the reason, before `SignalException` is raised for the second signal.
    """

    def __init__(self, text: str, leave: Callable[[str], None], end_workers: Callable[[str], None]) -> None:
        self._text = text
        self._leave = leave
        self._end_workers = end_workers
        self._num_signals = 0
        self._installed = False

    def install(self) -> None:
        """Install the handlers, on the main thread and before torchelastic starts its workers. Idempotent."""
        if self._installed or threading.current_thread() is not threading.main_thread():
            return
        self._installed = True
        names = [name.strip() for name in (environment.read(environment.SIGNALS_TO_HANDLE) or "").split(",")]
        others = [name for name in names if name and name not in ("SIGTERM", "SIGINT")]
        environment.write({environment.SIGNALS_TO_HANDLE: ",".join(others) or "SIGHUP"})
        for handled in (signal.SIGTERM, signal.SIGINT):
            signal.signal(handled, self._on_signal)
        signal.signal(signal.SIGUSR1, self._on_warning)

    def _on_warning(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        os.write(sys.stderr.fileno(), f"\n{name}: {self._text}.\n".encode())
        self._leave(name)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        self._num_signals += 1
        if self._num_signals == 1:
            # os.write: print() may hold the lock of the very buffer that this handler interrupted.
            os.write(sys.stderr.fileno(), f"\n{name}: {self._text}; once more to stop it at once.\n".encode())
            self._leave(name)
            return
        self._end_workers(f"second {name}")
        raise SignalException(f"{name}, the second signal: stopped at once", signal.Signals(number))
