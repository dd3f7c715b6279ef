"""The worker's end of the socket to its agent.

Rules that this file guards:

* in the steady state a step costs one attribute read (`at_boundary`);
* a worker that answered `Prepare` with boundary b does not pass boundary b + 1 before it has seen `Stop`, so that the
  leader's choice (the largest answer + 2) lies ahead of every worker; only when etcd is away meanwhile does it train
  on, and a late `Stop` then counts at once;
* whatever the agent announces is about the generation of the last `Assign`: the listener resets it when it reads that
  line, so that what follows on the socket is about the new generation;
* a worker ends when its agent does: no orphan trains on alone;
* a worker that was told of a failure is unwound within `rescale_timeout`, or ends itself, so that the others need not
  wait for it; one that waits in `ready` is unwound, whatever fails meanwhile;
* forked children (DataLoader workers) hold none of this process's sockets, or peers would notice its death late.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import socket
import sys
import threading
import weakref
from collections.abc import Callable

from dtf_lightning.elastic.link import messages
from dtf_lightning.errors import GenerationBroken, ProtocolError, RunAborted, RunRefused

log = logging.getLogger(__name__)

EXIT_AGENT_LOST = 70
EXIT_NOT_UNWOUND = 71
STOP_PATIENCE = 5.0
"""Seconds that a worker waits for `Stop` after its answer to `Prepare`; then it trains on, as etcd may be away."""
CONNECT_TIMEOUT = 30.0
"""Seconds to connect to the agent and to get its `Welcome`."""

_links: weakref.WeakSet[WorkerLink] = weakref.WeakSet()


class RunFinished(Exception):
    """The run came to its end while this worker waited to enter it."""


class WorkerLink:
    """One worker's connection to its agent. Thread-safe.

    Args:
        path: the agent's unix socket.
        local_rank: this worker's rank on its node; starts at 0.
        on_fail: called from the listener's thread when the generation is declared broken; must unblock a main thread
            that sits in a collective.
        on_agent_lost: called from the listener's thread when the agent is gone; the default ends the process.

    Raises:
        ProtocolError: what listens there is not an agent of this version.
        OSError: nothing listens there.
    """

    def __init__(
        self,
        path: str,
        local_rank: int,
        *,
        on_fail: Callable[[], object] = lambda: None,
        on_agent_lost: Callable[[], object] | None = None,
    ) -> None:
        self.on_fail = on_fail
        self.on_agent_lost = on_agent_lost or self._exit_with_the_agent
        self.generation = 0
        """The number of the generation that this worker is in, or was in last."""
        self.step = 0
        """The last global step, for heartbeats; written by the training loop without a lock."""
        self.stop_patience = STOP_PATIENCE
        self.pending = False
        """Whether the agent has announced something: the one attribute that a step reads."""
        self._changed = threading.Condition()
        self._boundary = 0
        self._answered: int | None = None
        self._stop: messages.Stop | None = None
        self._failed_target = 0
        self._fail_reason = ""
        self._assignment: messages.Assign | None = None
        self._finish: messages.Finish | None = None
        self._abort: messages.Abort | None = None
        self._refused: messages.Refused | None = None
        self._unwound = threading.Event()
        """Cleared by an assignment, set when this worker is out of its generation."""
        self._closed = False
        """Whether the connection may end: its end then no longer means that the agent is lost."""
        # Reentrant: a signal handler may call `leaving` while the main thread is in `send`.
        self._send_lock = threading.RLock()

        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        _links.add(self)
        self._buffer = b""
        try:
            self._socket.settimeout(CONNECT_TIMEOUT)
            self._socket.connect(path)
            self.send(messages.Hello(local_rank=local_rank, pid=os.getpid()))
            self.welcome = self._receive_welcome(path)
        except BaseException:
            self._socket.close()
            raise
        self._listener = threading.Thread(target=self._listen, daemon=True, name="dtf-worker-link")
        self._listener.start()

    # --- called by the training loop ---------------------------------------------------------------------------------

    def at_boundary(self) -> bool:
        """Count one optimizer-step boundary; return whether the planned rescale stops here.

        Raises `GenerationBroken` when a failure was announced, `RunAborted` when the run was ended.
        """
        self._boundary += 1
        if not self.pending:
            return False
        with self._changed:
            while True:
                self._raise_if_broken()
                if self._stop is not None:
                    return self._boundary >= self._stop.boundary
                if self._answered is None or self._boundary < self._answered + 2:
                    return False
                if not self._changed.wait(self.stop_patience):
                    # etcd may have gone away between the two messages. Going on is safe: no step can be done without
                    # the other workers, so whoever has seen `Stop` and this worker part at the same committed step.
                    self._answered = None

    def check(self) -> None:
        """Raise `GenerationBroken` or `RunAborted` if either was announced; for use between boundaries."""
        if self.pending:
            with self._changed:
                self._raise_if_broken()

    @property
    def broken(self) -> bool:
        """Whether a failure of the current generation was announced."""
        return self._failed_target > self.generation

    @property
    def abort_reason(self) -> str | None:
        """Why the leader ended the run; `None` while it has not."""
        return self._abort.reason if self._abort is not None else None

    @property
    def stopping(self) -> messages.Stop | None:
        """The planned rescale that this worker stops for; `None` outside of one."""
        return self._stop

    @property
    def fail_reason(self) -> str:
        return self._fail_reason

    def suspect(self, error: str, timeout: float) -> bool:
        """Report that a collective failed; return whether the leader declared the generation broken in time.

        `timeout` is in seconds.
        """
        self.send(messages.Suspect(generation=self.generation, error=error))
        with self._changed:
            return self._changed.wait_for(lambda: self.broken or self._abort is not None, timeout) and (
                self._abort is None
            )

    def ready(self, fingerprint: dict[str, str], parameters: tuple[str, ...], *, run_dir: str = "") -> messages.Assign:
        """Say that this worker is unwound (or set up) and wait for the next generation.

        Raises `RunFinished`, `RunAborted`, `RunRefused`, and `GenerationBroken` when the generation failed before this
        worker could enter it.
        """
        self._unwound.set()
        self.send(
            messages.Ready(after=self.generation, fingerprint=fingerprint, parameters=parameters, run_dir=run_dir)
        )
        with self._changed:
            while (assignment := self._answer_to_ready()) is None:
                self._changed.wait()
            self._assignment = None
            self._raise_if_broken()
        return assignment

    def active(self, step: int) -> None:
        """Say that the generation is formed and trains."""
        self.send(messages.Active(generation=self.generation, step=step))

    def finished(self, step: int) -> None:
        """Say that training came to its end here, and wait for the others.

        Raises `GenerationBroken` when a member that had not finished died, and `RunAborted`.
        """
        self.send(messages.Finished(generation=self.generation, step=step))
        with self._changed:
            while self._finish is None:
                self._raise_if_broken()
                self._changed.wait()

    def leaving(self, reason: str) -> None:
        self.send(messages.Leaving(reason=reason))

    def left(self) -> None:
        """Say that this worker leaves; from here on the agent may end before this process does."""
        self._closed = True
        self.send(messages.Left())

    def dying(self, error: str) -> None:
        self.send(messages.Dying(error=error))

    def send(self, message: messages.Message) -> None:
        """Send one message; that the agent may be gone is left to the listener."""
        with self._send_lock, contextlib.suppress(OSError):
            self._socket.sendall(message.encode())

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._closed = True
        self._unwound.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if threading.current_thread() is not self._listener:
            self._listener.join(timeout=CONNECT_TIMEOUT)
        self._socket.close()

    # --- the listener's thread ---------------------------------------------------------------------------------------

    def _receive_welcome(self, path: str) -> messages.Welcome:
        line = self._read_line()
        message = messages.decode(line) if line else None
        if not isinstance(message, messages.Welcome):
            raise ProtocolError(f"said hello to the agent at {path}, expected a welcome, got {message!r}")
        return message

    def _read_line(self) -> bytes:
        """Return one line, or nothing at the end of file; sends heartbeats while it waits."""
        while b"\n" not in self._buffer:
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                if not hasattr(self, "welcome"):
                    raise
                self.send(messages.Heartbeat(step=self.step))
                continue
            except OSError:
                return b""
            if not data:
                return b""
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _listen(self) -> None:
        self._socket.settimeout(self.welcome.heartbeat_interval)
        try:
            while line := self._read_line():
                self._handle(messages.decode(line))
        except Exception:
            log.exception("the agent cannot be understood, which is as good as gone")
        with self._changed:
            over = self._closed or any((self._finish, self._abort, self._refused))
        if not over:
            self.on_agent_lost()

    def _handle(self, message: messages.Message) -> None:
        broken = False
        with self._changed:
            match message:
                case messages.Prepare() if message.target > self.generation:
                    # First the flag, then the count: a main thread that counts on meanwhile sees the flag at its next
                    # boundary and waits for this lock, so that it is at most one boundary past the answer.
                    self.pending = True
                    self._answered, self._stop = self._boundary, None
                    self.send(messages.At(target=message.target, boundary=self._answered))
                case messages.Stop() if message.target > self.generation:
                    self._stop, self.pending = message, True
                case messages.Fail() if message.target > self.generation:
                    self._failed_target, self._fail_reason = message.target, message.reason
                    self.pending = broken = True
                case messages.Prepare() | messages.Stop() | messages.Fail():
                    pass  # said again by an agent that read its keys anew: this generation is the target already
                case messages.Assign():
                    self._enter(message)
                case messages.Finish():
                    self._finish = message
                case messages.Abort():
                    self._abort, self.pending, broken = message, True, True
                case messages.Refused():
                    self._refused = message
                case _:
                    raise ProtocolError(f"an agent does not send {message!r}")
            self._changed.notify_all()
        if broken:
            threading.Thread(target=self._watch_unwinding, daemon=True, name="dtf-unwind-watchdog").start()
            self._break_off()

    def _enter(self, assignment: messages.Assign) -> None:
        self._assignment = assignment
        self._unwound.clear()
        self.generation = int(assignment.generation["number"])
        self._boundary = 0
        self._answered = self._stop = None
        self.pending = self.broken

    def _break_off(self) -> None:
        try:
            self.on_fail()
        except Exception:
            log.exception("breaking the generation off failed; the main thread may unwind late, or be ended for it")

    def _answer_to_ready(self) -> messages.Assign | None:
        if self._abort is not None:
            raise RunAborted(self._abort.reason)
        if self._refused is not None:
            raise RunRefused(self._refused.reason)
        if self._finish is not None:
            raise RunFinished(self._finish.reason)
        return self._assignment

    def _raise_if_broken(self) -> None:
        if self._abort is not None:
            self._unwound.set()  # the main thread knows; whatever it does before it ends, no other worker waits for it
            raise RunAborted(self._abort.reason)
        if self.broken:
            raise GenerationBroken(f"generation {self.generation} is broken: {self._fail_reason}")

    def _watch_unwinding(self) -> None:
        """End the process if its main thread does not unwind in time: the other workers must not wait for it."""
        if self._unwound.wait(self.welcome.rescale_timeout):
            return
        sys.stderr.write(
            f"dtf-lightning: this worker was told {self.welcome.rescale_timeout:g} s ago that generation "
            f"{self.generation} is broken, but its main thread is still busy (stacks below). It ends itself so that "
            "the others can go on; `torchrun --max-restarts` brings it back as a joiner.\n"
        )
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        sys.stderr.flush()
        os._exit(EXIT_NOT_UNWOUND)

    def _exit_with_the_agent(self) -> None:
        self._break_off()
        sys.stderr.write(
            "dtf-lightning: the agent (torchrun) of this worker is gone; the worker ends itself, because nobody "
            "could tell it of a rescale any more. The other nodes go on without this one.\n"
        )
        sys.stderr.flush()
        os._exit(EXIT_AGENT_LOST)

    def _close_in_child(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.close()


def _after_fork_in_child() -> None:
    for link in list(_links):
        link._close_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
