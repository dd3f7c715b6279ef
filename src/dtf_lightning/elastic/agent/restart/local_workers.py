"""The worker processes that torchelastic has started on this node, seen from outside: stock scripts do not report.

Rules that this file guards:

* a worker's end is noticed in milliseconds (pidfd), not at torchelastic's next look;
* its exit code is only peeked at: torchelastic reaps;
* workers whose round is broken are frozen at once. One that goes on would fail in its next collective, and torchelastic
  would count that as a failure of this node, which with `--max-restarts=0` ends it;
* a frozen worker is thawed with SIGTERM pending, and killed when it has not ended in time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from dtf_lightning import environment
from dtf_lightning.processes import watchdog
from dtf_lightning.processes.watchdog import has_mark

log = logging.getLogger(__name__)

LOOK_INTERVAL = 0.01
"""Seconds between two looks for processes that are about to be started."""
LOOK_PATIENCE = 30.0
"""Seconds from the assignment of ranks to the start of the last process."""

OnFailure = Callable[[int, str], None]
"""(pid, what happened), from the watching thread."""


class LocalWorkers:
    """One thread that finds and watches the processes of a round."""

    def __init__(self, node: str, on_failure: OnFailure) -> None:
        self._mark = f"{environment.NODE}={node}".encode()
        self._on_failure = on_failure
        self._lock = threading.Condition()
        self._selector = selectors.DefaultSelector()
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._pidfds: dict[int, int] = {}
        """Pid to pidfd, of workers that live; under the lock."""
        self._seen: set[int] = set()
        self._adopted: set[int] = set()
        self._num_expected = 0
        self._look_until = 0.0
        self._frozen = False
        self._closing = False
        self._thread = threading.Thread(target=self._watch, daemon=True, name="dtf-local-workers")

    def start(self) -> None:
        self._thread.start()

    def expect(self, num_workers: int) -> None:
        """torchelastic is about to start this many processes."""
        with self._lock:
            self._num_expected, self._frozen = num_workers, False
            self._look_until = time.monotonic() + LOOK_PATIENCE
        self._wake()

    def adopt(self, pid: int) -> None:
        """This child is a worker although its environment, as the kernel shows it, does not say so."""
        with self._lock:
            self._adopted.add(pid)

    def freeze(self) -> None:
        """SIGSTOP, also for those that are found later."""
        with self._lock:
            self._frozen = True
            self._send(signal.SIGSTOP)

    def terminate(self) -> None:
        """SIGTERM, which reaches frozen ones too. Does not wait."""
        with self._lock:
            self._frozen = False
            self._send(signal.SIGTERM)
            self._send(signal.SIGCONT)

    def end(self, grace: float) -> None:
        """SIGTERM, and SIGKILL for those that live `grace` seconds later. Returns when all have ended."""
        with self._lock:
            self._num_expected = 0
            self._look()  # some may have been started this very moment
        self.terminate()
        if not self._wait_for_ends(grace):
            with self._lock:
                late = sorted(self._pidfds)
            log.warning("workers %s ignored SIGTERM for %g s: killed", ", ".join(map(str, late)), grace)
            self.kill()
            self._wait_for_ends(LOOK_PATIENCE)

    def kill(self) -> None:
        """SIGKILL. Does not wait, so that a signal handler may call it."""
        for pid in list(self._pidfds):
            _signal_group(pid, signal.SIGKILL)

    def close(self) -> None:
        """Idempotent; ends nobody."""
        if self._closing:
            return
        self._closing = True
        self._wake()
        if self._thread.is_alive():
            self._thread.join(5)
        for pidfd in self._pidfds.values():
            os.close(pidfd)
        self._pidfds.clear()
        self._selector.close()
        self._wake_reader.close()
        self._wake_writer.close()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            self._wake_writer.send(b".")

    def _wait_for_ends(self, timeout: float) -> bool:
        """Whether all have ended in time."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._pidfds, timeout)

    def _send(self, number: signal.Signals) -> None:
        for pid in self._pidfds:
            _signal_group(pid, number)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._closing:
            with self._lock:
                looking = self._num_expected > 0 and time.monotonic() < self._look_until
            for key, _ in self._selector.select(LOOK_INTERVAL if looking else None):
                if key.data is None:
                    with contextlib.suppress(BlockingIOError):
                        self._wake_reader.recv(4096)
                else:
                    self._ended(key.data)
            if looking:
                with self._lock:
                    self._look()

    def _look(self) -> None:
        for pid in _children() - self._seen:
            if not has_mark(pid, self._mark) or not (pid in self._adopted or _is_worker(pid)):
                continue
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue  # ended and reaped meanwhile: torchelastic tells
            self._seen.add(pid)
            self._num_expected = max(0, self._num_expected - 1)
            self._pidfds[pid] = pidfd
            self._selector.register(pidfd, selectors.EVENT_READ, pid)
            if self._frozen:
                _signal_group(pid, signal.SIGSTOP)

    def _ended(self, pid: int) -> None:
        cause = _peek(pid)
        with self._lock:
            pidfd = self._pidfds.pop(pid, None)
            if pidfd is None:
                return
            self._selector.unregister(pidfd)
            os.close(pidfd)
            self._lock.notify_all()
        if cause:
            self._on_failure(pid, cause)


class Watchdog:
    """The process that ends this agent's workers if the agent is killed."""

    def __init__(self, node: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(watchdog.__file__)), f"{environment.NODE}={node}"],
            stdin=subprocess.PIPE,
            start_new_session=True,  # the terminal's signals are not for it
            env=environment.for_child({}, without_prefix=environment.NODE),
        )

    def close(self) -> None:
        """The workers have been ended by the agent. Idempotent."""
        assert self._process.stdin is not None
        if not self._process.stdin.closed:
            with contextlib.suppress(OSError):
                self._process.stdin.write(watchdog.GOODBYE)
                self._process.stdin.close()
            self._process.wait(5)


def _children() -> set[int]:
    """The processes that this one has started, from any of its threads."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found.update(int(pid) for pid in (task / "children").read_text().split())
    return found


def _is_worker(pid: int) -> bool:
    """torchelastic's own variable, which the agent itself does not have."""
    try:
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(variable.startswith(b"TORCHELASTIC_RESTART_COUNT=") for variable in variables)


def _signal_group(pid: int, number: signal.Signals) -> None:
    """To the worker's process group, which torchelastic makes for a script; to it alone where it leads none."""
    try:
        if os.getpgid(pid) == pid:
            os.killpg(pid, number)
        else:
            os.kill(pid, number)
    except OSError:
        pass  # it has ended


def _peek(pid: int) -> str:
    """How the process failed; empty when it ended well, or was reaped already (torchelastic tells then)."""
    try:
        result = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except OSError:
        return ""
    if result is None or (result.si_code == os.CLD_EXITED and result.si_status == 0):
        return ""
    if result.si_code == os.CLD_EXITED:
        return f"exit code {result.si_status}"
    return signal.Signals(result.si_status).name
