"""A process that has imported torch and Lightning once and forks test processes off: 0.01 s instead of 6 s each.

It has one thread, and of grpc the module but no channel, so that forking it is safe. A function is sent by name with
pickled arguments; the child's output goes to a file or a pipe, its exit code comes back. A child dies with the server,
and the server ends with its test process, also when that is killed. `ForkServer.start` starts a Python program, which
may start others (`warm_python.py`).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import pickle
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import pytest

from support import warm_python

TESTS = Path(__file__).parents[1]
START_TIMEOUT = 300.0
HEAVY = (
    "torch._dynamo",  # seconds at the first DDP, if it is not there
    "torch.distributed.run",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "dtf_lightning.elastic.torchrun.create",
    "dtf_lightning.elastic.torchrun.live_handler",
    "dtf_lightning.elastic.torchrun.restart_handler",
    "dtf_lightning.elastic.lightning.callback",
    # What every agent loads before it can talk to etcd. Not our client: it refuses to work in a fork of who has loaded it.
    "grpc",
    "grpc._channel",
    "grpc.experimental",
    "encodings.idna",
    "dtf_lightning.etcd.wire.messages",
    "torch.distributed.algorithms.ddp_comm_hooks",  # with the first DDP
    "support.elastic.warm_up",
)


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
    """The test's end. Not thread-safe. `modules`: what the server imports beforehand."""

    def __init__(self, modules: Sequence[str] = HEAVY) -> None:
        self._connection, theirs = socket.socketpair()
        self._exit_codes: dict[int, int] = {}
        path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from support.fork_server import serve; serve({theirs.fileno()}, {modules!r})"],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={
                **os.environ,
                "PYTHONPATH": path,
                "OMP_NUM_THREADS": "1",
                "GRPC_ENABLE_FORK_SUPPORT": "0",
                "PYTHONUNBUFFERED": "1",
                warm_python.ROOM_VARIABLE: "x" * warm_python.ROOM,
            },
        )
        theirs.close()
        self._connection.settimeout(START_TIMEOUT)
        assert _receive(self._connection) == "ready", "the fork server did not start"

    def fork(self, function: Callable[..., object], output: Path | int, /, *args: Any) -> int:
        """Run `function(*args)` in a child, its output going to that file or descriptor; returns its process id."""
        if isinstance(output, Path):
            _send(self._connection, (function, args, str(output)))
        else:
            _send(self._connection, (function, args, None))
            socket.send_fds(self._connection, [b"."], [output])
        while True:
            message = _receive(self._connection)
            assert message is not None, "the fork server is gone"
            if message[0] == "forked":
                self._exit_codes.pop(message[1], None)  # an earlier child's: process ids are used again
                return int(message[1])
            self._exit_codes[message[1]] = message[2]

    def start(
        self, arguments: list[str], environment: Mapping[str, str], output: int, directory: str | None = None
    ) -> Program:
        """Be `python ARGUMENTS`, with its output in this descriptor, in this directory or the present one."""
        order = arguments, dict(environment), directory or str(Path.cwd()), self._process.pid
        return Program(self, self.fork(warm_python.program, output, *order))

    def popen(self, args: list[str], *, env: Mapping[str, str], stdout: IO[bytes], **_: object) -> Program:
        """As `subprocess.Popen`, as far as `LocalCluster` uses it."""
        return self.start(args[1:], env, stdout.fileno())

    def wait(self, pid: int, timeout: float) -> int | None:
        """The child's exit code (negative: the signal), or `None` when it lives on."""
        end = time.monotonic() + timeout
        while pid not in self._exit_codes:
            self._connection.settimeout(max(0.001, end - time.monotonic()))
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
        self._process.wait(START_TIMEOUT)


class Program:
    """A program that the server has started; what tests use of a `Popen`."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server, self.pid = server, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._server.wait(self.pid, 0.0)
        return self.returncode

    def wait(self, timeout: float = START_TIMEOUT) -> int:
        if self.returncode is None:
            self.returncode = self._server.wait(self.pid, timeout)
            if self.returncode is None:
                raise subprocess.TimeoutExpired(f"the forked program {self.pid}", timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """One for all tests of a session."""
    server = ForkServer()
    yield server
    server.close()


def serve(descriptor: int, modules: Sequence[str]) -> None:
    """The server's own life."""
    os.environ.pop(warm_python.ROOM_VARIABLE)
    import torch

    torch.set_num_threads(1)
    for module in modules:
        importlib.import_module(module)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a thread was started, and would be missing in every fork"
    gc.collect()
    gc.freeze()  # no child looks through these again, which would copy them page by page
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
            function, args, output = request
            output = _file(output) if output is not None else socket.recv_fds(connection, 1, 1)[1][0]
            ours = [descriptor, wake_reader, wake_writer, selector.fileno()]
            pid = fork_child(function, args, output, to_close=ours, mortal=True)
            os.close(output)
            _send(connection, ("forked", pid))
        _reap(connection)


def _file(path: str) -> int:
    return os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)


def _reap(connection: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _send(connection, ("ended", pid, os.waitstatus_to_exitcode(status)))


def fork_child(
    function: Callable[..., object], args: tuple[Any, ...], output: int, *, to_close: list[int], mortal: bool = False
) -> int:
    """Fork; the child runs the function in a session of its own, writes to `output`, ends with its exit code.

    A mortal one is killed when its parent ends; a worker outlives its agent, which some tests kill.
    """
    parent = os.getpid()

    def live() -> None:
        if mortal:
            warm_python.die_with_parent(parent)
        signal.set_wakeup_fd(-1)
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        for descriptor in (*to_close, output):
            os.close(descriptor)
        function(*args)

    pid = os.fork()
    if pid == 0:
        warm_python.as_process(live)
    return pid
