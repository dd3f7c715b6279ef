"""What a test leaves behind: changed environment, threads, processes, open sockets and files."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from dataclasses import dataclass

import psutil

from dtf_lightning.clock import poll_until

CHILD_MARK = "DTF_TEST_SESSION"
"""In the environment of every process that a test starts, so that orphans are found whoever their parent is now."""

PATIENCE = 60.0
"""Seconds that threads and processes get to end by themselves; only a test that leaks waits this long.

A DataLoader worker looks for its parent every 5 s (torch's `MP_STATUS_CHECK_INTERVAL`), and a busy machine is slow.
"""

WHERE_ALLOWED = 1.0
"""The same for a test that may leave something behind: what it leaves is not waited for."""

IGNORED_VARIABLES = {
    "PYTEST_CURRENT_TEST",  # pytest's own
    "CUDA_MODULE_LOADING",  # import torch
    "TORCHINDUCTOR_CACHE_DIR",  # import torch._dynamo, with the first DDP
    "TRITON_CACHE_DIR",  # likewise
    "KMP_INIT_AT_FORK",  # import sklearn (threadpoolctl)
    "KMP_DUPLICATE_LIB_OK",  # likewise
    "GRPC_ENABLE_FORK_SUPPORT",  # set once, before grpc is imported; the whole process keeps it
}

IGNORED_THREADS = (
    "tqdm_monitor",  # one per process, for good
    "grpc-",  # grpc's own pools end when the last channel is collected
)

IGNORED_FILES = (
    "anon_inode:",  # epoll and eventfd of grpc's global poller
    "/dev/",  # /dev/null, /dev/urandom, opened once by libraries
    "/proc/",  # psutil's own
)


def mark_children(session: str) -> None:
    """From now on every process started from here, and theirs, carries `session`."""
    os.environ[CHILD_MARK] = session


@dataclass(frozen=True)
class Snapshot:
    """What there is at one moment."""

    environment: dict[str, str]
    threads: frozenset[threading.Thread]
    pids: frozenset[int]
    files: frozenset[tuple[int, str]]

    @classmethod
    def take(cls) -> Snapshot:
        return cls(
            environment=dict(os.environ),
            threads=frozenset(threading.enumerate()),
            pids=frozenset(psutil.pids()),
            files=open_files(),
        )

    def clean_up(self, *, allowed: bool = False) -> list[str]:
        """Put right what can be: restore the environment, end the processes. Returns one line for each thing left."""
        deadline = time.monotonic() + (WHERE_ALLOWED if allowed else PATIENCE)
        return [
            *self._restore_environment(),
            *self._threads(deadline),
            *self._end_processes(deadline),
            *self._files(deadline),
        ]

    def _restore_environment(self) -> list[str]:
        now = dict(os.environ)
        changed = sorted(
            name
            for name in now.keys() | self.environment.keys()
            if now.get(name) != self.environment.get(name) and name not in IGNORED_VARIABLES
        )
        for name in changed:
            os.environ.pop(name, None)
            if name in self.environment:
                os.environ[name] = self.environment[name]
        return [f"environment: {name}={now.get(name)!r}, was {self.environment.get(name)!r}" for name in changed]

    def _threads(self, deadline: float) -> list[str]:
        new = [thread for thread in threading.enumerate() if thread not in self.threads]
        new = [thread for thread in new if not thread.name.startswith(IGNORED_THREADS)]
        for thread in new:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [f"thread: {thread.name}" for thread in new if thread.is_alive()]

    def _end_processes(self, deadline: float) -> list[str]:
        session = os.environ[CHILD_MARK]
        new = [process for process in map(_process, set(psutil.pids()) - self.pids) if _is_ours(process, session)]
        _, alive = psutil.wait_procs(new, timeout=max(0.0, deadline - time.monotonic()))
        lines = [f"process: {process.pid} {_command(process)}" for process in alive]
        for process in alive:
            process.kill()
        psutil.wait_procs(alive, timeout=PATIENCE)
        return lines

    def _files(self, deadline: float) -> list[str]:
        new = open_files() - self.files
        for patience in (0.1, deadline - time.monotonic()):
            if new:
                with contextlib.suppress(TimeoutError):  # a socket closed by a thread that is just ending
                    poll_until(lambda: open_files() <= self.files, patience, "the files to be closed", interval=0.01)
                new = open_files() - self.files
            if new:
                gc.collect()  # 0.2 s with torch; a file in a reference cycle is not a leak, only late
                new = open_files() - self.files
        return [f"file {number}: {target}" for number, target in sorted(new)]


def open_files() -> frozenset[tuple[int, str]]:
    """Number and target of every file descriptor that counts."""
    found = set()
    for number in os.listdir("/proc/self/fd"):  # not by paths as objects: this is asked twice a test
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # the listing's own descriptor, closed by now
            continue
        if not target.startswith(IGNORED_FILES):
            found.add((int(number), target))
    return frozenset(found)


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:  # gone meanwhile
        return None


def _is_ours(process: psutil.Process | None, session: str) -> bool:
    if process is None:
        return False
    try:
        return process.ppid() == os.getpid() or process.environ().get(CHILD_MARK) == session
    except (psutil.Error, OSError):  # gone meanwhile, or somebody else's
        return False


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()) or f"<{process.name()}, {process.status()}>"
    except psutil.Error:
        return "<gone>"
