"""The worker's end of the socket to its agent.

Rules that this file guards, beside those of `announced.py` and `worker_socket.py`:

* a worker ends when its agent does: no orphan trains on alone;
* a worker that was told of a failure is unwound within `rescale_timeout`, or ends itself, so that the others need not
  wait for it; one that waits in `ready` is unwound, whatever fails meanwhile.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator

from dtf_lightning.elastic.link import messages
from dtf_lightning.elastic.link.announced import Announced, RunFinished
from dtf_lightning.elastic.link.worker_socket import WorkerSocket
from dtf_lightning.errors import ProtocolError, RunAborted, RunRefused
from dtf_lightning.processes.lifeline import Lifeline

__all__ = ["RunFinished", "WorkerLink"]

log = logging.getLogger(__name__)

EXIT_AGENT_LOST = 70
EXIT_NOT_UNWOUND = 71
CONNECT_TIMEOUT = 30.0
"""Seconds to connect to the agent and to get its `Welcome`."""


class WorkerLink:
    """One worker's connection to its agent. Thread-safe.

    Args:
        path: the agent's unix socket.
        local_rank: this worker's rank on its node; starts at 0.
        on_fail: called from the listener's thread when the generation is declared broken; must unblock a main thread
            that sits in a collective.
        on_agent_lost: called from the listener's thread when the agent is gone; the default ends the process.

    Raises:
        RunFinished: the run is over, or its node leaves, and this worker is not needed.
        RunAborted: the run was ended.
        RunRefused: the node, or this worker of it, is refused.
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
        self.step = 0
        """The last global step, for heartbeats; written by the training loop without a lock."""
        self._announced = Announced(self.send)
        self.batches = 0
        """The number of batches that this worker has begun in its generation."""
        self._loop_ended = False
        """Whether this worker has said that it leaves the training loop, in this generation."""
        self._closed = False
        """Whether the connection may end: its end then no longer means that the agent is lost."""
        self._socket = WorkerSocket(path, CONNECT_TIMEOUT)
        try:
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
        self._goes_on()
        self.batches += 1
        return self._announced.at_boundary()

    def begin_batch(self) -> None:
        """Count one batch that begins no step, but goes on with an accumulation. Raises like `check`."""
        self._goes_on()
        self.batches += 1
        self._announced.check()

    def check(self) -> None:
        """Raise `GenerationBroken` or `RunAborted` if either was announced; for use between boundaries."""
        self._announced.check()

    @property
    def generation(self) -> int:
        """The number of the generation that this worker is in, or was in last."""
        return self._announced.generation

    @property
    def pending(self) -> bool:
        """Whether the agent has announced something that the next boundary looks at."""
        return self._announced.pending

    @property
    def waits(self) -> bool:
        """Whether this worker is unwound from its last generation, and waits for the next."""
        return self._announced.unwound.is_set()

    @property
    def broken(self) -> bool:
        """Whether a failure of the current generation was announced."""
        return self._announced.broken

    @property
    def abort_reason(self) -> str | None:
        """Why the leader ended the run; `None` while it has not."""
        abort = self._announced.abort
        return abort.reason if abort is not None else None

    @property
    def stopping(self) -> messages.Stop | None:
        """The planned rescale that this worker stops for; `None` outside of one."""
        return self._announced.stop

    @property
    def fail_reason(self) -> str:
        """Why the last generation that broke did so; empty before the first."""
        return self._announced.fail_reason

    def suspect(self, error: str, timeout: float) -> bool:
        """Report that a collective failed; return whether the leader declared the generation broken in time.

        `timeout` is in seconds.
        """
        self.send(messages.Suspect(generation=self.generation, error=error))
        return self._announced.await_break(timeout)

    def ready(self, fingerprint: dict[str, str], parameters: tuple[str, ...], *, run_dir: str = "") -> messages.Assign:
        """Say that this worker is unwound (or set up) and wait for the next generation.

        Raises `RunFinished`, `RunAborted`, `RunRefused`, and `GenerationBroken` when the generation failed before this
        worker could enter it.
        """
        self._announced.unwound.set()
        self._loop_ended, self.batches = False, 0
        self.send(
            messages.Ready(after=self.generation, fingerprint=fingerprint, parameters=parameters, run_dir=run_dir)
        )
        return self._announced.await_assignment()

    def active(self, step: int) -> None:
        """Say that the generation is formed and trains."""
        self.send(messages.Active(generation=self.generation, step=step))

    def loop_ends(self, step: int, reason: str) -> None:
        """Say that this worker leaves the training loop after `step` optimizer steps, and why.

        The leader ends the run where another worker begins a batch beyond it, and waits for this one for ever.
        """
        self.step, self._loop_ended = step, True
        self._say_loop_ends(reason)

    def _goes_on(self) -> None:
        if self._loop_ended:
            self._loop_ended = False
            self._say_loop_ends("", withdrawn=True)

    def _say_loop_ends(self, reason: str, *, withdrawn: bool = False) -> None:
        self.send(
            messages.LoopEnds(
                generation=self.generation,
                batches=self.batches,
                step=self.step,
                reason=reason,
                withdrawn=withdrawn,
            )
        )

    def finished(self, step: int) -> None:
        """Say that training came to its end here, and wait for the others.

        Raises `GenerationBroken` when a member that had not finished died, and `RunAborted`.
        """
        self.send(messages.Finished(generation=self.generation, step=step))
        self._announced.await_finish()

    def trained(self) -> None:
        """Say that this worker holds a state in which an optimizer step of this run is made."""
        self.send(messages.Trained())

    def await_stop(self, timeout: float) -> bool:
        """Wait for a planned rescale, in no step; false if none is announced within `timeout` seconds.

        Raises `GenerationBroken` when a failure was announced, `RunAborted` when the run was ended.
        """
        return self._announced.await_stop(timeout)

    def leaving(self, reason: str) -> None:
        """Say that this worker was asked to go. Safe in a signal handler."""
        self.send(messages.Leaving(reason=reason))

    def left(self) -> None:
        """Say that this worker leaves; from here on the agent may end before this process does."""
        self._closed = True
        self.send(messages.Left())

    def dying(self, error: str, *, refused: bool = False) -> None:
        """Say that this process is about to end by its own error; `refused`: the node is not to be started again."""
        self.send(messages.Dying(error=error, refused=refused))

    def send(self, message: messages.Message) -> None:
        """Send one message; that the agent may be gone is left to the listener."""
        self._socket.send(message.encode())

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._closed = True
        self._announced.unwound.set()
        self._socket.hang_up()
        if threading.current_thread() is not self._listener:
            self._listener.join(timeout=CONNECT_TIMEOUT)
        self._socket.close()

    # --- the listener's thread ---------------------------------------------------------------------------------------

    def _receive_welcome(self, path: str) -> messages.Welcome:
        line = self._socket.read_line()
        message = messages.decode(line) if line else None
        match message:
            case messages.Finish():  # the run came to its end while this worker imported
                raise RunFinished(message.reason, run_over=message.run_over)
            case messages.Abort():
                raise RunAborted(message.reason)
            case messages.Refused():
                raise RunRefused(message.reason)
        if not isinstance(message, messages.Welcome):
            raise ProtocolError(f"said hello to the agent at {path}, expected a welcome, got {message!r}")
        return message

    def _listen(self) -> None:
        self._socket.read_timeout(self.welcome.heartbeat_interval)
        with self._on_a_lifeline():
            try:
                while line := self._read_line():
                    self._handle(messages.decode(line))
            except Exception:
                log.exception("the agent cannot be understood, which is as good as gone")
        if not self._closed and not self._announced.over:
            self.on_agent_lost()

    @contextlib.contextmanager
    def _on_a_lifeline(self) -> Iterator[None]:
        """Hold a lifeline inside the context, where there are such: the agent then sees a death sooner."""
        try:
            lifeline = Lifeline()
        except OSError as error:
            log.debug("this worker has no lifeline: %s", error)
            yield
            return
        self._socket.send_with_file(messages.HoldsLifeline().encode(), lifeline.descriptor)
        lifeline.close_file()
        try:
            yield
        finally:
            lifeline.let_go()

    def _read_line(self) -> bytes:
        """Return one line, or nothing at the end of file; sends heartbeats while it waits."""
        while True:
            try:
                return self._socket.read_line()
            except TimeoutError:
                self.send(messages.Heartbeat(step=self.step, generation=self.generation, batches=self.batches))

    def _handle(self, message: messages.Message) -> None:
        if self._announced.hear(message):
            threading.Thread(target=self._watch_unwinding, daemon=True, name="dtf-unwind-watchdog").start()
            self._break_off()

    def _break_off(self) -> None:
        try:
            self.on_fail()
        except Exception:
            log.exception("breaking the generation off failed; the main thread may unwind late, or be ended for it")

    def _watch_unwinding(self) -> None:
        """End the process if its main thread does not unwind in time: the other workers must not wait for it."""
        if self._announced.unwound.wait(self.welcome.rescale_timeout):
            return
        self._end(
            f"this worker was told {self.welcome.rescale_timeout:g} s ago that generation {self.generation} is broken, but "
            "its main thread is still busy (stacks below)"
        )

    def end_forgotten(self) -> None:
        """End the process, whose main thread waits in a collective of a broken generation that nothing will end."""
        self.send(messages.Dying(error="gloo has forgotten it in a collective of a broken generation", aftermath=True))
        self._end(
            f"generation {self.generation} is broken, a member died in the middle of a transfer, and gloo has forgotten that "
            "this worker waits for the rest of it (stacks below)"
        )

    def _end(self, why: str) -> None:
        sys.stderr.write(
            f"dtf-lightning: {why}. It ends itself so that the others can go on; `torchrun --max-restarts` brings it back "
            "as a joiner.\n"
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
