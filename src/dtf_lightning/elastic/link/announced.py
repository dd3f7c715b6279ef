"""What its agent has announced to a worker, and how far the worker has come meanwhile. No I/O but the answer to `Prepare`.

Rules that this file guards:

* in the steady state a step costs a count and one attribute read (`at_boundary`);
* a worker that answered `Prepare` with boundary b does not pass boundary b + 1 before it has seen `Stop`, so that the
  leader's choice (the largest answer + 2) lies ahead of every worker; only when etcd is away meanwhile does it train
  on, and a late `Stop` then counts at once;
* whatever the agent announces is about the generation of the last `Assign`: it is reset when that is heard, so that
  what follows is about the new generation.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from dtf_lightning.elastic.link import messages
from dtf_lightning.errors import GenerationBroken, ProtocolError, RunAborted, RunRefused

STOP_PATIENCE = 5.0
"""Seconds that a worker waits for `Stop` after its answer to `Prepare`; then it trains on, as etcd may be away."""


class RunFinished(Exception):
    """The run came to its end, or its node left, while this worker waited for a generation."""

    def __init__(self, reason: str, *, run_over: bool = True) -> None:
        super().__init__(reason)
        self.run_over = run_over
        """Whether the run is over; false if only this worker's node leaves it."""


class Announced:
    """Written by the listener's thread, read by the training loop's.

    Args:
        answer: sends a worker's answer.
    """

    def __init__(self, answer: Callable[[messages.Message], None]) -> None:
        self.generation = 0
        """The number of the generation that this worker is in, or was in last."""
        self.pending = False
        """Whether the agent has announced something: the one attribute that a step reads."""
        self.changed = threading.Condition()
        """Held for everything but the step that has nothing to look at."""
        self.unwound = threading.Event()
        """Cleared by an assignment, set when this worker is out of its generation."""
        self.stop: messages.Stop | None = None
        self.abort: messages.Abort | None = None
        self.stop_patience = STOP_PATIENCE
        self.fail_reason = ""
        self._failed_target = 0
        self._boundary = 0
        self._answered: int | None = None
        self._assignment: messages.Assign | None = None
        self._finish: messages.Finish | None = None
        self._refused: messages.Refused | None = None
        self._answer = answer

    @property
    def broken(self) -> bool:
        """Whether a failure of the current generation was announced."""
        return self._failed_target > self.generation

    @property
    def over(self) -> bool:
        """Whether the agent has finished, aborted or refused this worker."""
        return any((self._finish, self.abort, self._refused))

    # --- the listener's thread ---------------------------------------------------------------------------------------

    def hear(self, message: messages.Message) -> bool:
        """Take in the agent's word; true if the main thread must unwind now. Raises `ProtocolError` for a worker's word."""
        with self.changed:
            must_unwind = False
            match message:
                case messages.Prepare() if message.target > self.generation:
                    # First the flag, then the count: a main thread that counts on meanwhile sees the flag at its next
                    # boundary and waits for this lock, so that it is at most one boundary past the answer.
                    self.pending = True
                    self._answered, self.stop = self._boundary, None
                    self._answer(messages.At(target=message.target, boundary=self._answered))
                case messages.Stop() if message.target > self.generation:
                    self.stop, self.pending = message, True
                case messages.Fail() if message.target > self.generation:
                    self._failed_target, self.fail_reason = message.target, message.reason
                    self.pending = must_unwind = True
                case messages.Prepare() | messages.Stop() | messages.Fail():
                    pass  # said again by an agent that read its keys anew: this generation is the target already
                case messages.Assign():
                    self._enter(message)
                case messages.Finish():
                    self._finish = message
                case messages.Abort():
                    self.abort, self.pending, must_unwind = message, True, True
                case messages.Refused():
                    self._refused = message
                case _:
                    raise ProtocolError(f"an agent does not send {message!r}")
            self.changed.notify_all()
        return must_unwind

    def _enter(self, assignment: messages.Assign) -> None:
        self._assignment = assignment
        self.unwound.clear()
        self.generation = int(assignment.generation["number"])
        self._boundary = 0
        self._answered = self.stop = None
        self.pending = self.broken

    # --- the training loop's thread ----------------------------------------------------------------------------------

    def at_boundary(self) -> bool:
        """Count one optimizer-step boundary; return whether the planned rescale stops here.

        Raises `GenerationBroken` when a failure was announced, `RunAborted` when the run was ended.
        """
        self._boundary += 1
        if not self.pending:
            return False
        with self.changed:
            while True:
                self._raise_if_broken()
                if self.stop is not None:
                    return self._boundary >= self.stop.boundary
                if self._answered is None or self._boundary < self._answered + 2:
                    return False
                if not self.changed.wait(self.stop_patience):
                    # etcd may have gone away between the two messages. Going on is safe: no step can be done without
                    # the other workers, so whoever has seen `Stop` and this worker part at the same committed step.
                    self._answered = None

    def check(self) -> None:
        """Raise `GenerationBroken` or `RunAborted` if either was announced."""
        if self.pending:
            with self.changed:
                self._raise_if_broken()

    def await_stop(self, timeout: float) -> bool:
        """Wait, before the generation's first boundary, for a stop; false if none is announced within `timeout` seconds.

        Raises `GenerationBroken` when a failure was announced, `RunAborted` when the run was ended.
        """
        with self.changed:
            self.changed.wait_for(lambda: self.stop is not None or self.broken or self.abort is not None, timeout)
            self._raise_if_broken()
            return self.stop is not None

    def await_break(self, timeout: float) -> bool:
        """Wait until the generation is declared broken; false if it is not in time, or the run is aborted."""
        with self.changed:
            self.changed.wait_for(lambda: self.broken or self.abort is not None, timeout)
            return self.broken and self.abort is None

    def await_assignment(self) -> messages.Assign:
        """Wait for the next generation.

        Raises `RunFinished`, `RunAborted`, `RunRefused`, and `GenerationBroken` when the generation failed before this
        worker could enter it.
        """
        with self.changed:
            while (assignment := self._answer_to_ready()) is None:
                self.changed.wait()
            self._assignment = None
            self._raise_if_broken()
        return assignment

    def await_finish(self) -> None:
        """Wait for the end of the run. Raises `GenerationBroken` when a member that had not finished died, `RunAborted`."""
        with self.changed:
            while self._finish is None:
                self._raise_if_broken()
                self.changed.wait()

    def _answer_to_ready(self) -> messages.Assign | None:
        if self.abort is not None:
            raise RunAborted(self.abort.reason)
        if self._refused is not None:
            raise RunRefused(self._refused.reason)
        if self._finish is not None:
            raise RunFinished(self._finish.reason, run_over=self._finish.run_over)
        return self._assignment

    def _raise_if_broken(self) -> None:
        if self.abort is not None:
            self.unwound.set()  # the main thread knows; whatever it does before it ends, no other worker waits for it
            raise RunAborted(self.abort.reason)
        if self.broken:
            raise GenerationBroken(f"generation {self.generation} is broken: {self.fail_reason}")
