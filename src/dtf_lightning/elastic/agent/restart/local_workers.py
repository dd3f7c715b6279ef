"""`LocalWorkers` watches the workers that torchelastic has started on this node: stock scripts do not report.

Rules that this file guards:

* a worker's end is noticed in milliseconds (pidfd), not at torchelastic's next look;
* its exit code is only peeked at: torchelastic reaps;
* workers whose round is broken are frozen at once. One that goes on would fail in its next collective, and torchelastic
  would count that as a failure of this node, which with `--max-restarts=0` ends it;
* a frozen worker is thawed with SIGTERM pending, and killed when it has not ended in time.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dtf_lightning import environment
from dtf_lightning.processes.selector_thread import SelectorThread
from dtf_lightning.processes.signals import children, open_pidfd, signal_group, why_failed
from dtf_lightning.processes.watchdog import has_mark

log = logging.getLogger(__name__)

LOOK_INTERVAL = 0.01
"""Seconds between two looks for processes that are about to be started."""
LOOK_PATIENCE = 30.0
"""Seconds from the assignment of ranks to the start of the last process."""

OnFailure = Callable[[int, int, str], None]
"""A function of (pid, local rank, what happened), called by the watching thread."""


class LocalWorkers:
    """A thread that finds and watches the processes of a round."""

    def __init__(self, node: str, on_failure: OnFailure) -> None:
        self._mark = f"{environment.NODE}={node}".encode()
        self._on_failure = on_failure
        self._lock = threading.Condition()
        self._watcher = SelectorThread("dtf-local-workers", self._look_if_expected)
        self._pidfds: dict[int, int] = {}
        """The pidfds of the workers that live, by pid; under the lock."""
        self._seen: set[int] = set()
        self._adopted: dict[int, int] = {}
        """The local ranks of adopted workers, by pid."""
        self._num_expected = 0
        self._look_until = 0.0
        self._frozen = False

    def start(self) -> None:
        self._watcher.start()

    def expect(self, num_workers: int) -> None:
        """Note that torchelastic is about to start this many processes."""
        with self._lock:
            self._num_expected, self._frozen = num_workers, False
            self._look_until = time.monotonic() + LOOK_PATIENCE
        self._watcher.wake()

    def adopt(self, pid: int, local_rank: int) -> None:
        """Take a child for a worker although its environment, as the kernel shows it, does not say so."""
        with self._lock:
            self._adopted[pid] = local_rank

    def freeze(self) -> None:
        """Stop all workers by SIGSTOP, also those that are found later."""
        with self._lock:
            self._frozen = True
            self._send(signal.SIGSTOP)

    def terminate(self) -> None:
        """Send SIGTERM to all workers, which reaches frozen ones too. Does not wait."""
        with self._lock:
            self._frozen = False
            self._send(signal.SIGTERM)
            self._send(signal.SIGCONT)

    def end(self, grace: float) -> None:
        """Send SIGTERM, then SIGKILL to those that live `grace` seconds later. Returns when all have ended."""
        with self._lock:
            self._look()  # some may have been started this very moment
            self._num_expected = 0
        self.terminate()
        if not self._wait_for_ends(grace):
            with self._lock:
                late = sorted(self._pidfds)
            log.warning("workers %s ignored SIGTERM for %g s: killed", ", ".join(map(str, late)), grace)
            self.kill()
            self._wait_for_ends(LOOK_PATIENCE)

    def kill(self) -> None:
        """Send SIGKILL to all workers. Does not wait, so that a signal handler may call it."""
        for pid in list(self._pidfds):
            signal_group(pid, signal.SIGKILL)

    def close(self) -> None:
        """End the watching thread, and no worker. Idempotent."""
        self._watcher.close()
        for pidfd in self._pidfds.values():
            os.close(pidfd)
        self._pidfds.clear()

    def _wait_for_ends(self, timeout: float) -> bool:
        """Return whether all workers have ended in time."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._pidfds, timeout)

    def _send(self, number: signal.Signals) -> None:
        for pid in self._pidfds:
            signal_group(pid, number)

    # --- the thread --------------------------------------------------------------------------------------------------

    def _look_if_expected(self) -> float | None:
        with self._lock:
            if self._num_expected == 0 or time.monotonic() >= self._look_until:
                return None
            self._look()
            return LOOK_INTERVAL if self._num_expected else None

    def _look(self) -> None:
        for pid in children() - self._seen:
            local_rank = self._adopted.get(pid, _local_rank(pid)) if has_mark(pid, self._mark) else None
            pidfd = open_pidfd(pid) if local_rank is not None else None
            if local_rank is None or pidfd is None:
                continue  # no worker, or ended and waited for meanwhile: torchelastic tells
            self._seen.add(pid)
            self._num_expected = max(0, self._num_expected - 1)
            self._pidfds[pid] = pidfd
            self._watcher.register(pidfd, partial(self._ended, pid, local_rank))
            if self._frozen:
                signal_group(pid, signal.SIGSTOP)

    def _ended(self, pid: int, local_rank: int) -> None:
        cause = why_failed(pid)
        with self._lock:
            pidfd = self._pidfds.pop(pid, None)
            if pidfd is None:
                return
            self._watcher.unregister(pidfd)
            os.close(pidfd)
            self._lock.notify_all()
        if cause:
            self._on_failure(pid, local_rank, cause)


def _local_rank(pid: int) -> int | None:
    """Return a worker's local rank by torchelastic's variables, which the agent lacks; `None` for another process."""
    try:
        lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    variables = dict(line.partition(b"=")[::2] for line in lines)
    return int(variables.get(b"LOCAL_RANK", 0)) if b"TORCHELASTIC_RESTART_COUNT" in variables else None
