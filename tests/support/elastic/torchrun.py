"""Real torchrun in processes of their own, whose output is waited for line by line."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from support.fork_server import ForkServer, Program

PATIENCE = 180.0
"""Seconds for anything: importing torch takes 3 of them on an idle machine, and many more on a busy one."""

WORKER = Path(__file__).parent / "programs/link_worker.py"
"""Speaks the worker's side without torch or Lightning: quick to start."""


class Torchrun:
    """One node. A context manager; ends the process, with every worker, if it is still there."""

    def __init__(
        self,
        endpoint: str,
        run_id: str,
        script: str | Path = WORKER,
        *script_arguments: str,
        nnodes: str = "1:4",
        num_workers: int = 1,
        conf: str = "initial_window=0.5",
        options: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        rendezvous: tuple[str, ...] | None = None,
        command: list[str] | None = None,
        server: ForkServer | None = None,
    ) -> None:
        """`rendezvous`: other flags than those of our backend. `command`: the whole of it, instead of all that.

        `server`: torchrun and its workers are forked from there; `None` executes them, as a user's shell does.
        """
        ours = ("--rdzv-backend=etcd", f"--rdzv-endpoint={endpoint}", f"--rdzv-id={run_id}", f"--rdzv-conf={conf}")
        command = command or [
            *(sys.executable, "-m", "torch.distributed.run", f"--nnodes={nnodes}", f"--nproc-per-node={num_workers}"),
            *(ours if rendezvous is None else rendezvous),
            *options,
            *(str(script), *script_arguments),
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **(env or {})}
        reader, writer = os.pipe()
        self.process: Program | subprocess.Popen[bytes] = (
            server.start(command[1:], environment, writer)
            if server is not None
            else subprocess.Popen(command, stdout=writer, stderr=subprocess.STDOUT, env=environment)
        )
        os.close(writer)
        self._printed = os.fdopen(reader, errors="replace")
        self.output = ""
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True, name="torchrun-output")
        self._reader.start()

    def _read(self) -> None:
        for line in self._printed:
            self._lines.put(line)
        self._lines.put(None)

    def __enter__(self) -> Torchrun:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # its workers see the end and go
        self.process.wait()
        self._reader.join(PATIENCE)
        self._printed.close()

    def expect(self, pattern: str, timeout: float = PATIENCE) -> re.Match[str]:
        """The next line in which the pattern is found."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {pattern!r} within {timeout:g} s; the output:\n{self.output}") from None
            if line is None:
                self._lines.put(None)
                raise AssertionError(f"ended without {pattern!r}; the output:\n{self.output}")
            self.output += line
            if found := re.search(pattern, line):
                return found

    def wait(self, timeout: float = PATIENCE) -> int:
        """The exit code, with all the output read."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"still running after {timeout:g} s; the output:\n{self.output}") from None
            if line is None:
                self._lines.put(None)
                return self.process.wait(max(1.0, deadline - time.monotonic()))
            self.output += line

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
