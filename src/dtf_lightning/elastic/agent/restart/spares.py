"""Spares: one process per local rank that has imported the script's packages already (docs/decisions/0011-warm-start.md).

torchelastic starts a worker with `SubprocessHandler._popen`, the one private method touched here (torch 2.13): in this
process it hands out a spare, if there is one for just this command, and else does what it always did. A spare is a child
of the agent in a session of its own, as a cold worker is, so that torchelastic signals and reaps it the same way.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import IO, Any

from dtf_lightning.elastic.agent.restart.spare_process import LENGTH_BYTES, READY

log = logging.getLogger(__name__)

READY_PATIENCE = 120.0
"""Seconds that a node which is about to join waits for its spares' imports; after them it joins without spares."""
START = "from dtf_lightning.elastic.agent.restart.spare_process import main; main({channel}, {ready}, {script!r})"


class Spare:
    """A process that imports the script's packages and waits.

    The channel carries one order and no answer: closing a unix socket in which an answer lies unread would reset it, and
    take the order along. Hence the pipe beside it.
    """

    def __init__(self, script: str) -> None:
        self._channel, theirs = socket.socketpair()
        reader, writer = os.pipe()
        self._ready = os.fdopen(reader, "rb", buffering=0)
        start = START.format(channel=theirs.fileno(), ready=writer, script=script)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-u", "-c", start], pass_fds=(theirs.fileno(), writer), start_new_session=True
            )
        finally:
            theirs.close()
            os.close(writer)

    def wait_until_ready(self, timeout: float) -> bool:
        """Return whether its imports are done in time. Called once."""
        readable, _, _ = select.select([self._ready], [], [], timeout)
        return bool(readable) and self._ready.read(1) == READY

    def become(self, arguments: list[str], environment: dict[str, str], files: list[IO[str]]) -> bool:
        """Turn the spare into the worker; return `False` if it has ended."""
        order = json.dumps({"arguments": arguments, "environment": environment}).encode()
        self._channel.settimeout(READY_PATIENCE)  # it may still be importing
        try:
            head = len(order).to_bytes(LENGTH_BYTES, "big")
            if files:
                socket.send_fds(self._channel, [head], [file.fileno() for file in files])
            else:
                self._channel.sendall(head)
            self._channel.sendall(order)
        except OSError:
            self.close()
            return False
        self._hang_up()
        return self.process.poll() is None

    def close(self) -> None:
        """End the process."""
        self._hang_up()
        self.process.kill()
        self.process.wait()

    def _hang_up(self) -> None:
        self._channel.close()
        self._ready.close()


class Spares:
    """The spare processes of one agent.

    Args:
        script: the training script's path, as torchrun starts it.
        num_workers: how many of them there shall be.
        delay: seconds from the start of workers to that of the next spares: until then the cores are the workers'.
        adopt: called with the pid and the local rank of a spare that becomes a worker.
    """

    def __init__(self, script: str, num_workers: int, delay: float, adopt: Callable[[int, int], None]) -> None:
        self._script = script
        self._num_workers = num_workers
        self._delay = delay
        self._adopt = adopt
        self._lock = threading.Lock()
        self._spares: list[Spare] = []
        self._timer: threading.Timer | None = None
        self._closed = False
        self._uninstall: Callable[[], None] = lambda: None

    def install(self) -> None:
        """Let torchelastic's workers in this process be spares from now on, where possible."""
        try:
            from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import (
                SubprocessHandler,
            )

            original = SubprocessHandler._popen
        except (ImportError, AttributeError) as error:
            log.warning("warm=true: this torch starts its workers in another way (%s), they start cold", error)
            return

        def popen(handler: Any, args: tuple[str, ...], env: dict[str, str]) -> subprocess.Popen[Any]:
            files = [file for file in (handler._stdout, handler._stderr) if file is not None]
            return self.take(list(args), env, files) or original(handler, args, env)

        SubprocessHandler._popen = popen  # type: ignore[assignment,method-assign]
        self._uninstall = lambda: setattr(SubprocessHandler, "_popen", original)

    def fill(self) -> None:
        """Start the spares that are missing."""
        with self._lock:
            while not self._closed and len(self._spares) < self._num_workers:
                self._spares.append(Spare(self._script))

    def fill_later(self) -> None:
        """Start the spares that are missing, once the workers that start now have done so."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = threading.Timer(self._delay, self.fill)
            self._timer.daemon = True
            self._timer.start()

    def wait_until_ready(self) -> None:
        """Wait until all spares have made their imports, or have had their time."""
        with self._lock:
            spares = list(self._spares)
        if not all(spare.wait_until_ready(READY_PATIENCE) for spare in spares):
            log.warning("warm=true: not all imports are done; the workers start with what there is")
        else:
            log.info("%d spares are ready", len(spares))

    def take(self, args: list[str], env: dict[str, str], files: list[IO[str]]) -> subprocess.Popen[Any] | None:
        """Return a spare that has become the worker of this command; `None` if there is none for it."""
        self.fill_later()
        if args[:3] != [sys.executable, "-u", self._script] or len(files) == 1:
            return None  # -m, --no-python, NUMA binding, one of two streams redirected
        while True:
            with self._lock:
                spare = self._spares.pop(0) if self._spares else None
            if spare is None:
                return None
            if spare.become(args[2:], env, files):
                self._adopt(spare.process.pid, int(env.get("LOCAL_RANK", 0)))
                return spare.process

    def close(self) -> None:
        """End all spares that have not become workers. Idempotent."""
        with self._lock:
            self._closed = True
            spares, self._spares = self._spares, []
            timer = self._timer
        if timer is not None:
            timer.cancel()
        self._uninstall()
        for spare in spares:
            spare.close()
