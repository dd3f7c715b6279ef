"""A training's parts on a test's farm that are forked from the fork server: torch's imports are most of what they cost.

What the keeper starts is a small program in the place of `python`. It has its arguments, environment, directory and output forked
by the test process, passes SIGTERM on, and ends as what was forked does. If it is killed, that is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import sys
import tempfile
import threading
from pathlib import Path

from support.fork_server import ForkServer, Program

LOOK = 0.02
"""Seconds between two looks for ends."""
HEAD = struct.Struct("!i")

LAUNCHER = """#!{python} -IS
import json, os, signal, socket, struct, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({path!r})
order = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode()
socket.send_fds(connection, [struct.pack("!i", len(order))], [1])
connection.sendall(order)
(pid,) = struct.unpack("!i", connection.recv(4, socket.MSG_WAITALL))
signal.signal(signal.SIGTERM, lambda number, _: os.kill(pid, number))
(code,) = struct.unpack("!i", connection.recv(4, socket.MSG_WAITALL))
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class WarmParts:
    """A context manager. Nothing else may use the fork server meanwhile. `python`: what the farm is to start."""

    def __init__(self, server: ForkServer) -> None:
        self._server = server
        self._folder = Path(tempfile.mkdtemp(prefix="dtf-warm-"))
        path, launcher = self._folder / "socket", self._folder / "python"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        launcher.write_text(LAUNCHER.format(python=sys.executable, path=str(path)))
        launcher.chmod(0o700)
        self.python = str(launcher)
        self._running: dict[socket.socket, Program] = {}
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="warm-parts")

    def __enter__(self) -> WarmParts:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        for connection, program in self._running.items():
            program.kill()
            program.wait()
            connection.close()
        self._listener.close()
        for path in self._folder.iterdir():
            path.unlink()
        self._folder.rmdir()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            while not self._ending.is_set():
                for key, _ in selector.select(LOOK):
                    if key.fileobj is self._listener:
                        connection, _ = self._listener.accept()
                        self._running[connection] = self._start(connection)
                        selector.register(connection, selectors.EVENT_READ)
                    else:  # the launcher says nothing: it has ended
                        assert isinstance(key.fileobj, socket.socket)
                        self._running[key.fileobj].kill()
                        selector.unregister(key.fileobj)
                for connection, program in list(self._running.items()):
                    if (code := program.poll()) is not None:
                        with contextlib.suppress(KeyError):
                            selector.unregister(connection)
                        with contextlib.suppress(OSError):
                            connection.sendall(HEAD.pack(code))
                        connection.close()
                        del self._running[connection]

    def _start(self, connection: socket.socket) -> Program:
        head, descriptors, _, _ = socket.recv_fds(connection, HEAD.size, 1)
        arguments, environment, directory = json.loads(
            connection.recv(HEAD.unpack(head)[0], socket.MSG_WAITALL).decode()
        )
        program = self._server.start(arguments, environment, descriptors[0], directory)
        os.close(descriptors[0])
        connection.sendall(HEAD.pack(program.pid))
        return program
