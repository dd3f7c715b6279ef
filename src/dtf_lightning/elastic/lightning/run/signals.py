"""These signal handlers let SIGTERM and Ctrl-C end a worker at a step boundary; its peers see only a pause."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]


@contextmanager
def graceful_signals(ask_to_leave: Callable[[str], None]) -> Iterator[None]:
    """Call `ask_to_leave` with the signal's name on the first SIGTERM or Ctrl-C; a second one interrupts at once.

    Lightning's own SIGTERM handler runs a collective inside the signal handler, which hangs when a peer is gone.
    """
    asked = False

    def leave(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            signal.default_int_handler(number, frame)
        asked = True
        ask_to_leave(signal.Signals(number).name)

    with _handled_by(leave, keep=lambda: False):
        yield


@contextmanager
def stopping_signals(stop: Callable[[str], None], is_stopping: Callable[[], bool]) -> Iterator[None]:
    """Call `stop` with the signal's name on every SIGTERM and on the first Ctrl-C, for workers in restart mode.

    One SIGTERM arrives twice where a scheduler signals all processes of a node and the agent passes the signal on. Once
    `is_stopping` is true the handlers stay installed, so that another signal does not interrupt the worker's last writes.
    """
    interrupted = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if number == signal.SIGINT and interrupted:
            signal.default_int_handler(number, frame)
        interrupted |= number == signal.SIGINT
        stop(signal.Signals(number).name)

    with _handled_by(handle, keep=is_stopping):
        yield


@contextmanager
def _handled_by(handler: Handler, *, keep: Callable[[], bool]) -> Iterator[None]:
    """Handle SIGTERM and Ctrl-C by `handler` inside, and by the former handlers afterwards unless `keep` is true then."""
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in former:
        signal.signal(number, handler)
    try:
        yield
    finally:
        if not keep():
            for number, before in former.items():
                # None: the handler was not installed from Python, which cannot put it back
                signal.signal(number, signal.SIG_DFL if before is None else before)
