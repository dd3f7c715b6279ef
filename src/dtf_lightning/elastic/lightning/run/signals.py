"""SIGTERM and Ctrl-C: leave at a step boundary, so that nobody else notices more than a pause."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def graceful_signals(ask_to_leave: Callable[[str], None]) -> Iterator[None]:
    """Inside, SIGTERM and the first Ctrl-C call `ask_to_leave` with the signal's name; a second one interrupts at once.

    Lightning's own SIGTERM handler runs a collective inside the signal handler, which hangs when a peer is gone.
    """
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    asked = False

    def leave(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            signal.default_int_handler(number, frame)
        asked = True
        ask_to_leave(signal.Signals(number).name)

    for number in former:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number, handler in former.items():
            # None: the handler was not installed from Python, which cannot put it back
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def stopping_signals(stop: Callable[[str], None], is_stopping: Callable[[], bool]) -> Iterator[None]:
    """For workers that are started anew: inside, every SIGTERM, and the first Ctrl-C, calls `stop` with its name.

    A scheduler that signals all processes of a node and the agent that passes it on make two of one SIGTERM. Once the
    worker stops, the handlers stay: what it has still to write is not cut short by another one.
    """
    former = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupted = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if number == signal.SIGINT and interrupted:
            signal.default_int_handler(number, frame)
        interrupted |= number == signal.SIGINT
        stop(signal.Signals(number).name)

    for number in former:
        signal.signal(number, handle)
    try:
        yield
    finally:
        if not is_stopping():
            for number, handler in former.items():
                signal.signal(number, signal.SIG_DFL if handler is None else handler)
