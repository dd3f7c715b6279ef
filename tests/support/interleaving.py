"""Run one thread up to a chosen bytecode of another: races as data instead of luck."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any


class ObservedCondition(threading.Condition):
    """Tells when a thread has to wait: for the lock, or for a notification."""

    def __init__(self) -> None:
        self.somebody_waits = threading.Event()
        super().__init__(_ObservedLock(self.somebody_waits))  # type: ignore[arg-type]

    def wait(self, timeout: float | None = None) -> bool:
        self.somebody_waits.set()
        return super().wait(timeout)


class _ObservedLock:
    def __init__(self, somebody_waits: threading.Event) -> None:
        self._lock = threading.Lock()
        self._somebody_waits = somebody_waits

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._lock.acquire(blocking=False):
            return True
        if not blocking:
            return False
        self._somebody_waits.set()
        return self._lock.acquire(True, timeout)

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *args: object) -> None:
        self.release()


def at_bytecode(code: CodeType, number: int, action: Callable[[], None], run: Callable[[], None]) -> bool:
    """Call `run`, and `action` before the bytecode of that number that `code` executes in it; false if it ends before."""
    executed = 0

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code is not code:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return trace_opcodes

    def trace_opcodes(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal executed
        if event == "opcode":
            if executed == number:
                action()
            executed += 1
        return trace_opcodes

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(former)
    return executed > number
