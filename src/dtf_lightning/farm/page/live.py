"""Views that stay true while somebody looks: rendered when something has changed, and sent when that shows.

Rules that this file guards:
- A view is rendered once for all who look at it, and only while somebody does; at most `PER_SECOND` times a second, and
  so seldom that rendering it takes at most `SHARE` of the time. But nobody waits longer than `LONGEST_PAUSE` for what has
  changed: one rendering may have been slow because the machine was.
- The whole view is sent, never a difference: whoever missed something has all of it with the next one. Each has an id,
  the record's revision and a digest; who comes back with the id of what he has is sent only what looks different.
- Nobody who comes back is shown an older revision than he has seen, unless this coordinator does not get there in time.
- A reader is waited for `SLOW` seconds, then dropped: he comes back by himself and begins with the newest.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dtf_lightning.clock import Clock
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.presence import wait_for_event

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

log = logging.getLogger(__name__)

PER_SECOND = 5
SHARE = 0.05
LONGEST_PAUSE = 3.0
LOOK = 1.0
"""Seconds after which a view is rendered though nothing was announced: output that other coordinators store."""
BEAT = 5.0
"""Seconds of silence after which a reader is told that all is well: without it he looks for another coordinator."""
SLOW = 10.0
BEHIND = 2.0
"""Seconds for this coordinator to get to the revision that a reader has seen."""
RETRY = 1000
"""Milliseconds after which a browser comes back."""
MAX_READERS = 500


def pause_after(cost: float) -> float:
    """Return the seconds between the beginnings of two renderings of a view, of which one took `cost` seconds."""
    return min(max(1 / PER_SECOND, cost / SHARE), LONGEST_PAUSE)


@dataclass(frozen=True)
class Shown:
    """A view as it is sent."""

    id: str
    """`<revision>-<digest>`."""
    html: str

    @classmethod
    def of(cls, revision: int, html: str) -> Shown:
        """Give it its id."""
        return cls(f"{revision}-{hashlib.blake2b(html.encode(), digest_size=9).hexdigest()}", html)

    @property
    def digest(self) -> str:
        """What is the same for two views that look the same."""
        return self.id.partition("-")[2]

    def event(self) -> bytes:
        """As a server-sent event."""
        data = "".join(f"data: {line}\n" for line in self.html.split("\n"))
        return f"id: {self.id}\nevent: view\n{data}\n".encode()


def revision_of(seen: str) -> int:
    """Return the revision of a view's id; 0 for what is none."""
    told = seen.partition("-")[0]
    return int(told) if told.isascii() and told.isdecimal() and len(told) < 19 else 0


Render = Callable[[], Awaitable[Shown]]


class _Watched:
    """One view that somebody looks at."""

    def __init__(self) -> None:
        self.shown: Shown | None = None
        self.readers: set[asyncio.Event] = set()
        self.job: asyncio.Task[None] | None = None


class LiveViews:
    """Runs on the coordinator's event loop."""

    def __init__(self, pool: Pool, clock: Clock) -> None:
        self._pool = pool
        self._clock = clock
        self._views: dict[str, _Watched] = {}
        self._waiting: set[asyncio.Event] = set()
        self._closing = asyncio.Event()
        pool.woken.append(self._woken)

    @property
    def num_readers(self) -> int:
        """How many look."""
        return sum(len(view.readers) for view in self._views.values())

    def close(self) -> None:
        """Let all readers go."""
        self._closing.set()
        self._woken()
        for view in self._views.values():
            for event in view.readers:
                event.set()

    async def follow(self, name: str, render: Render, seen: str = "") -> AsyncIterator[bytes]:
        """Yield server-sent events as a view changes, until `close`.

        Args:
            name: what tells the view from others.
            seen: the id of what the reader has.
        """
        yield f"retry: {RETRY}\n\n".encode()
        await self._get_to(revision_of(seen))
        digest, event = seen.partition("-")[2], asyncio.Event()
        view = self._views.setdefault(name, _Watched())
        view.readers.add(event)
        if view.job is None:
            view.job = asyncio.create_task(self._keep(view, render))
        try:
            while not self._closing.is_set() and not view.job.done():
                event.clear()
                if view.shown is not None and view.shown.digest != digest:
                    digest = view.shown.digest
                    yield view.shown.event()
                elif not await wait_for_event_or_not(event, BEAT):
                    yield b"event: beat\ndata:\n\n"
        finally:
            view.readers.discard(event)
            if not view.readers:
                self._views.pop(name, None)
                view.job.cancel()

    async def _keep(self, view: _Watched, render: Render) -> None:
        changed = asyncio.Event()
        try:
            while not self._closing.is_set():
                changed.clear()
                self._waiting.add(changed)
                began = self._clock.monotonic()
                shown = await render()
                cost = self._clock.monotonic() - began
                if view.shown is None or view.shown.digest != shown.digest:
                    view.shown = shown
                    for event in view.readers:
                        event.set()
                await wait_for_event(changed, LOOK)
                await wait_for_event(self._closing, max(0.0, began + pause_after(cost) - self._clock.monotonic()))
        except Exception:
            log.exception("a view of the page cannot be rendered")
        finally:
            self._waiting.discard(changed)
            for event in view.readers:
                event.set()

    async def _get_to(self, revision: int) -> None:
        changed = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BEHIND):
                while self._pool.mirror.revision < revision and not self._closing.is_set():
                    changed.clear()
                    self._waiting.add(changed)
                    await changed.wait()
        self._waiting.discard(changed)

    def _woken(self) -> None:
        for event in self._waiting:
            event.set()
        self._waiting.clear()


async def wait_for_event_or_not(event: asyncio.Event, timeout: float) -> bool:
    """Wait for an event, for at most `timeout` seconds; whether it came."""
    await wait_for_event(event, timeout)
    return event.is_set()


class EventStream:
    """An ASGI response of server-sent events, which ends when they end, the reader goes, or is too slow."""

    def __init__(self, events: AsyncIterator[bytes], *, slow: float = SLOW) -> None:
        self._events = events
        self._slow = slow

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store")]
        sending = asyncio.create_task(self._send(headers, send))
        leaving = asyncio.create_task(_until_gone(receive))
        try:
            await asyncio.wait([sending, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            sending.cancel()
            told = await asyncio.gather(sending, leaving, return_exceptions=True)
        for error in told:
            if isinstance(error, Exception) and not isinstance(error, OSError | TimeoutError):
                raise error

    async def _send(self, headers: list[tuple[bytes, bytes]], send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        async with contextlib.aclosing(self._events) as events:  # type: ignore[type-var]  # a generator
            async for event in events:
                async with asyncio.timeout(self._slow):
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
