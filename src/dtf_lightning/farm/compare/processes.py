"""A command that is run to its end on this machine; what it has started ends with it, and all of it if it takes too long.

It leads a process group of its own. It is waited for by the kernel alone, without looking again and again: polling would add
its pauses to every time that is measured.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dtf_lightning.processes.signals import signal_group


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended."""

    process: str
    """Names it: its id and when it was started."""
    failure: str
    """In words; "" for exit code 0."""
    wall: float
    """Seconds from its start to its end."""
    cpu: float
    """Seconds of processors, with those of its children that it has waited for."""


def run_to_end(
    command: Sequence[str], folder: Path, *, output: int, timeout: float, variables: Mapping[str, str] | None = None
) -> Ended:
    """Run a command. `output` is an open file descriptor; `timeout` in seconds; Ctrl-C ends all of it, too."""
    late = threading.Event()
    started, began = time.time_ns(), time.perf_counter()
    try:
        process = subprocess.Popen(
            command, cwd=folder, env=variables, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except OSError as error:
        return Ended(process="", failure=f"cannot be started: {error.strerror or error}", wall=0.0, cpu=0.0)

    def end() -> None:
        late.set()
        signal_group(process.pid, signal.SIGKILL)

    timer = threading.Timer(timeout, end)
    timer.daemon = True
    timer.start()
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        wall = time.perf_counter() - began
        # What it leaves in the background would disturb the next run. It is still to be waited for, so its id is no other's.
        signal_group(process.pid, signal.SIGKILL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # it is waited for: Popen must not do so again
    finally:
        timer.cancel()
        timer.join()
        if process.returncode is None:  # Ctrl-C
            signal_group(process.pid, signal.SIGKILL)
            process.wait()
    failure = ""
    if late.is_set():
        failure = f"did not end within {timeout:g} s"
    elif process.returncode < 0:
        failure = f"was ended by signal {-process.returncode}"
    elif process.returncode:
        failure = f"ended with exit code {process.returncode}"
    return Ended(process=f"{process.pid}@{started}", failure=failure, wall=wall, cpu=usage.ru_utime + usage.ru_stime)
