"""`KeeperLink` is a worker's end of the socket to its keeper, which it starts, or finds if an earlier worker has left it."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable

from dtf_lightning.errors import PeerError, ProtocolError
from dtf_lightning.farm.worker.folders import WorkerFolders
from dtf_lightning.farm.worker.keeper import guard
from dtf_lightning.farm.worker.keeper.cgroups import RLIMIT
from dtf_lightning.farm.worker.keeper.messages import SOCKET, Complete, Lines, Message, Quit, pack, unpack

log = logging.getLogger(__name__)

ANSWER_TIMEOUT = 30.0
"""Seconds for the keeper to start (it imports little) or to take a message; it never waits for us."""
END_TIMEOUT = 20.0
"""Seconds for the keeper's end once its attempts have ended."""
PIECE = 1 << 16


class KeeperLink:
    """Thread-safe but for `connect` and `close`, which one thread calls.

    Args:
        folders: the worker's.
        patience: seconds for which the keeper lets attempts run without a worker.
        cgroups: whether it may make any.
        hear: is called in a thread of this object, with each message that comes after `connect`.
        gone: is called in the same thread when the keeper has ended although nobody wanted it to.
    """

    def __init__(
        self,
        folders: WorkerFolders,
        *,
        patience: float,
        cgroups: bool,
        hear: Callable[[Message], object],
        gone: Callable[[], object],
    ) -> None:
        self._folders, self._hear, self._gone = folders, hear, gone
        self._arguments = [str(patience), *([] if cgroups else [RLIMIT])]
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._lines = Lines()
        self._expected_to_end = False

    def connect(self) -> list[Message]:
        """Find or start the keeper; what it says about what it has. Raises `PeerError` if it does not answer."""
        self._lines = Lines()
        connection = self._find()
        said = None if connection is None else self._greeting(connection)
        if connection is None or said is None:
            connection = self._start()
            said = self._greeting(connection)
        if said is None:
            connection.close()
            raise PeerError(
                f"the keeper of {self._folders.path} was started but did not answer within {ANSWER_TIMEOUT:g} s; "
                f"see {self._folders.path / 'keeper.log'}"
            )
        connection.settimeout(None)
        with self._lock:
            self._socket = connection
        return said

    def listen(self) -> None:
        """Start the thread."""
        assert self._socket is not None
        self._thread = threading.Thread(target=self._listen, args=(self._socket,), name="farm-keeper-link", daemon=True)
        self._thread.start()

    def say(self, message: Message) -> bool:
        """Send a message. Of a keeper that has just gone, `gone` hears; `False`: there is none."""
        with self._lock:
            if self._socket is None:
                return False
            with contextlib.suppress(OSError):
                self._socket.sendall(pack(message))
            return True

    def close(self, *, end_keeper: bool) -> None:
        """Leave the keeper alone with its attempts, or let it end with them."""
        self._expected_to_end = True
        if end_keeper:
            self.say(Quit())
        else:
            self._shut_down()
        if self._thread is not None:
            self._thread.join(END_TIMEOUT)
        self._forget(END_TIMEOUT if end_keeper else 0.0)

    def _find(self) -> socket.socket | None:
        here = os.open(self._folders.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(ANSWER_TIMEOUT)
            connection.connect(f"/proc/self/fd/{here}/{SOCKET}")  # a socket's path has 107 bytes at most
            return connection
        except OSError:
            connection.close()
            return None
        finally:
            os.close(here)

    def _start(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        ours.settimeout(ANSWER_TIMEOUT)
        with theirs, (self._folders.path / "keeper.log").open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-PS", guard.__file__, self._folders.path, str(theirs.fileno()), *self._arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # so that signals from the terminal do not reach it
            )
        return ours

    def _greeting(self, connection: socket.socket) -> list[Message] | None:
        """What it says up to `Complete`; `None` if it ends, or does not say it in time."""
        said: list[Message] = []
        try:
            while data := connection.recv(PIECE):
                said += map(unpack, self._lines.add(data))
                if any(isinstance(message, Complete) for message in said):
                    return said
        except (OSError, ProtocolError) as error:
            log.warning("the keeper does not answer: %s", error)
        connection.close()
        return None

    def _listen(self, connection: socket.socket) -> None:
        try:
            while data := connection.recv(PIECE):
                for line in self._lines.add(data):
                    self._hear(unpack(line))
        except OSError:
            pass  # it was closed
        except Exception:
            log.exception("the keeper of %s said what cannot be understood", self._folders.path)
        if not self._expected_to_end:
            self._forget(0.0)
            self._gone()

    def _shut_down(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)

    def _forget(self, patience: float) -> None:
        """Close our end, and wait for the process where it is our child. One that is to go on is left alone."""
        with self._lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None
        process, self._process = self._process, None
        if process is None:
            return
        if patience or not self._expected_to_end:
            try:
                process.wait(patience or END_TIMEOUT)
            except subprocess.TimeoutExpired:
                log.error("the keeper %d did not end within %g s and is killed", process.pid, patience)
                process.kill()
                process.wait(END_TIMEOUT)
        else:
            process.returncode = 0  # its end is of no interest to this process: it must not be waited for
