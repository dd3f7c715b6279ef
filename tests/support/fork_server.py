"""A process that has imported torch and Lightning once and forks test processes off: 0.01 s instead of 6 s each.

It has one thread and no gRPC channel, so that forking it is safe. A function is sent by name with pickled arguments;
the child's output goes to a file, its exit code comes back.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
START_TIMEOUT = 120.0


def _send(connection: socket.socket, value: Any) -> None:
    data = pickle.dumps(value)
    connection.sendall(struct.pack("!I", len(data)) + data)


def _receive(connection: socket.socket) -> Any:
    """The next value; `None` at the end of file."""
    header = _exactly(connection, 4)
    return pickle.loads(_exactly(connection, struct.unpack("!I", header)[0])) if header else None


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = connection.recv(size - len(data))
        if not piece:
            return b""
        data += piece
    return data


class ForkServer:
    """The test's end. Not thread-safe."""

    def __init__(self) -> None:
        self._connection, theirs = socket.socketpair()
        self._exit_codes: dict[int, int] = {}
        path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from support.fork_server import serve; serve({theirs.fileno()})"],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={
                **os.environ,
                "PYTHONPATH": path,
                "OMP_NUM_THREADS": "1",
                "GRPC_ENABLE_FORK_SUPPORT": "0",
                "PYTHONUNBUFFERED": "1",
            },
        )
        theirs.close()
        self._connection.settimeout(START_TIMEOUT)
        assert _receive(self._connection) == "ready", "the fork server did not start"

    def fork(self, function: Callable[..., object], output: Path, /, *args: Any) -> int:
        """Run `function(*args)` in a child; returns its process id."""
        _send(self._connection, (function, args, str(output)))
        while True:
            message = _receive(self._connection)
            assert message is not None, "the fork server is gone"
            if message[0] == "forked":
                self._exit_codes.pop(message[1], None)  # an earlier child's: process ids are used again
                return int(message[1])
            self._exit_codes[message[1]] = message[2]

    def wait(self, pid: int, timeout: float) -> int | None:
        """The child's exit code (negative: the signal), or `None` when it lives on."""
        end = time.monotonic() + timeout
        while pid not in self._exit_codes:
            self._connection.settimeout(max(0.01, end - time.monotonic()))
            try:
                message = _receive(self._connection)
            except TimeoutError:
                return None
            finally:
                self._connection.settimeout(START_TIMEOUT)
            assert message is not None, "the fork server is gone"
            self._exit_codes[message[1]] = message[2]
        return self._exit_codes[pid]

    def close(self) -> None:
        self._connection.close()
        self._process.wait(10)


def serve(descriptor: int) -> None:
    """The server's own life."""
    import torch

    torch.set_num_threads(1)
    connection = socket.socket(fileno=descriptor)
    wake_reader, wake_writer = os.pipe()
    for end in (wake_reader, wake_writer):
        os.set_blocking(end, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_writer)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    selector = selectors.DefaultSelector()
    selector.register(connection, selectors.EVENT_READ)
    selector.register(wake_reader, selectors.EVENT_READ)
    _send(connection, "ready")
    while True:
        for key, _ in selector.select():
            if key.fileobj is not connection:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_reader, 4096)
                continue
            request = _receive(connection)
            if request is None:
                os._exit(0)  # at once: a regular end frees torch's memory piece by piece, for seconds
            pid = fork_child(*request, to_close=[descriptor, wake_reader, wake_writer, selector.fileno()])
            _send(connection, ("forked", pid))
        _reap(connection)


def _reap(connection: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _send(connection, ("ended", pid, os.waitstatus_to_exitcode(status)))


def fork_child(function: Callable[..., object], args: tuple[Any, ...], output: str, *, to_close: list[int]) -> int:
    """Fork; the child runs the function in a session of its own and ends with its exit code."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.setsid()
        for descriptor in to_close:
            os.close(descriptor)
        log = os.open(output, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        function(*args)
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
