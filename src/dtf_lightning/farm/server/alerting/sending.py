"""`Sender`: lets handlers speak, each in a thread of its own and one thing at a time, and waits for none of them for ever.

Rules that this file guards:
- A handler that hangs holds up nobody but itself: its thread is left alone, and it is asked nothing more until that ends.
- The threads are daemons: a coordinator's end waits for none.
- Whatever a handler raises is an error in words.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from dtf_lightning.clock import Clock
from dtf_lightning.errors import DtfError
from dtf_lightning.farm.alerts.notice import Handler, Notice

MAX_ERROR = 300


@dataclass(frozen=True)
class HandlerEntry:
    """A handler, and the seconds that it has."""

    handler: Handler
    timeout: float


class UnknownHandler(DtfError):
    """No handler is called so."""


class Sender:
    """Runs on an event loop.

    Args:
        handlers: by their names.
    """

    def __init__(self, handlers: Mapping[str, HandlerEntry], clock: Clock) -> None:
        self._handlers = handlers
        self._clock = clock
        self._busy: dict[str, float] = {}
        """Handler -> since when its thread runs, monotonic seconds."""

    @property
    def names(self) -> tuple[str, ...]:
        """Every handler's."""
        return tuple(self._handlers)

    def is_busy(self, name: str) -> bool:
        """Whether a handler is still at what it was last given."""
        return name in self._busy

    async def send(self, name: str, notice: Notice) -> str:
        """Let a handler tell a notice. Return what went wrong; "" if nothing did. Raises `UnknownHandler`."""
        entry = self._handlers.get(name)
        if entry is None:
            raise UnknownHandler(f"no handler is called {name!r}; there are {', '.join(self._handlers)}")
        if name in self._busy:
            return f"it has not come back from what it was given {self._clock.monotonic() - self._busy[name]:.0f} s ago"
        self._busy[name] = self._clock.monotonic()
        loop = asyncio.get_running_loop()
        done: asyncio.Future[str] = loop.create_future()

        def ended(error: str) -> None:
            self._busy.pop(name, None)
            if not done.done():
                done.set_result(error)

        def run() -> None:
            error = _tried(entry.handler, notice, entry.timeout)
            try:
                loop.call_soon_threadsafe(ended, error)
            except RuntimeError:
                pass  # the loop has ended: the next leader finds the delivery owed

        threading.Thread(target=run, name=f"alert-{name}", daemon=True).start()
        try:
            async with asyncio.timeout(entry.timeout):
                return await done
        except TimeoutError:
            return f"it has not come back within {entry.timeout:g} s"


def _tried(handler: Handler, notice: Notice, timeout: float) -> str:
    try:
        handler.send(notice, timeout)
    except Exception as error:
        text = str(error) if isinstance(error, DtfError) else f"{type(error).__name__}: {error}"
        return text[:MAX_ERROR] or type(error).__name__
    return ""
