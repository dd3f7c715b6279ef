"""`ServerProcess` is a server as a child process that tells when it is ready, and that dies with its parent.

Rules:
- etcd itself tells that it is ready (`sd_notify`), the thread that waits for it tells that it has ended: nothing polls.
- The kernel ties a child's death to that of the *thread* that started it, so one thread starts it and stays to the end.
- It is ended by its own process id, and never left running.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from dtf_lightning import environment
from dtf_lightning.errors import SettingsError, StoreError

STOP_TIMEOUT = 5.0
_PR_SET_PDEATHSIG = 1
_ENDED = b"ENDED=1"
"""This package's own word on the socket on which etcd says READY=1."""
_USERS_FAULTS = ("address already in use", "permission denied", "no space left on device", "read-only file system")


class ServerProcess:
    """A child process that tells when it is ready, and that dies with this process."""

    def __init__(self, arguments: Sequence[str], *, cwd: Path, log_path: Path) -> None:
        self.ended = threading.Event()
        self._arguments = list(arguments)
        self._cwd = cwd
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None
        self._started = threading.Event()
        # Abstract (no file), since a path in a deep directory would be too long for a unix socket.
        self._ready_name = f"dtf-etcd-{uuid4().hex}"
        self._ready = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ready.bind(f"\0{self._ready_name}")
        self._keeper = threading.Thread(target=self._keep, name="etcd-keeper", daemon=True)
        self._keeper.start()
        self._started.wait()
        self._check_started()

    def _check_started(self) -> None:
        if self._failure is not None:
            self._ready.close()
            raise StoreError(f"etcd could not be started as {self._arguments[0]}: {self._failure}")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def wait_until_ready(self, timeout: float) -> None:
        """Wait until it is ready. Raises `SettingsError` or `StoreError`, with etcd's words if it has ended instead."""
        self._ready.settimeout(timeout)
        try:
            told = self._ready.recv(256)
        except TimeoutError:
            raise StoreError(
                f"etcd was not ready within {timeout:.0f} s (its log: {self._log_path}): {self.last_words()}"
            ) from None
        if told != _ENDED:
            return
        words = self.last_words()
        error = SettingsError if any(text in words for text in _USERS_FAULTS) else StoreError
        raise error(f"etcd ended before it was ready: {words}")

    def last_words(self) -> str:
        """Return the last errors of its log, in one line."""
        try:
            lines = self._log_path.read_text(errors="replace").splitlines()
        except OSError:
            return "it left no log"
        told = [text for text in map(_words, lines) if text]
        return "; ".join(dict.fromkeys(told[-3:])) or "it said nothing"

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self, *, gently: bool = True) -> None:
        """End the server by its process id, and wait until it has ended. Idempotent."""
        if not self.ended.is_set():
            self.signal(signal.SIGTERM if gently else signal.SIGKILL)
            if not self.ended.wait(STOP_TIMEOUT):
                self.signal(signal.SIGKILL)
        self._keeper.join(STOP_TIMEOUT)
        self._ready.close()

    def _keep(self) -> None:
        parent = os.getpid()
        libc = ctypes.CDLL(None, use_errno=True)

        def die_with_parent() -> None:
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)

        try:
            with self._log_path.open("wb") as log_file:
                # A session of its own: Ctrl-C in the terminal is for us, who then stop it.
                self._process = subprocess.Popen(
                    self._arguments,
                    cwd=self._cwd,
                    env=environment.for_child({"NOTIFY_SOCKET": f"@{self._ready_name}"}, without_prefix="ETCD_"),
                    stdin=subprocess.DEVNULL,
                    stdout=log_file,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=die_with_parent,  # noqa: PLW1509  (calls libc only; nothing that could hold a lock)
                )
        except OSError as error:
            self._failure = error
            return
        finally:
            self._started.set()
        self._process.wait()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.setblocking(False)
            try:
                end.sendto(_ENDED, f"\0{self._ready_name}")
            except OSError:
                pass  # nobody waits for readiness any more
        self.ended.set()


def _words(line: str) -> str:
    """Return the text of a line of etcd's JSON log if it is an error, and any other line as it is (say, a panic)."""
    try:
        record = json.loads(line)
    except ValueError:
        return line.strip()
    if not isinstance(record, dict) or record.get("level") not in ("error", "fatal", "panic"):
        return ""
    return " ".join(str(record[name]) for name in ("msg", "error") if record.get(name))
