"""The clients' WebSockets (`/ws`): each has a reader, and a writer that takes what there is when the socket takes it.

Rules that this file guards:
- Nothing is queued for a client but its answers, of which there are at most `MAX_ANSWERS`: updates lie in the hub. Who does
  not keep up loses its place there, and is told so.
- A socket that takes nothing for `SEND_TIMEOUT` seconds is closed.
- A client that has nothing to hear hears a heartbeat, with the sequence up to which it has heard everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from dtf_lightning.errors import DtfError, SettingsError
from dtf_lightning.farm.orchestrate.splitting import CannotSplitYet
from dtf_lightning.farm.rules.updates import Subscription
from dtf_lightning.farm.security.identity import Forbidden, Identity, identity_of
from dtf_lightning.farm.security.ownership import narrowed_filter
from dtf_lightning.farm.security.permissions import reason_against
from dtf_lightning.farm.server.clients.keys import OtherRequest
from dtf_lightning.farm.server.updates.changes import ORCHESTRATED, TASKS, Updates, message_of
from dtf_lightning.farm.server.updates.requests import (
    LATER,
    OPERATIONS,
    ClientMessage,
    Unreadable,
    error,
    read_channel,
    read_client,
    read_subscribe,
)

log = logging.getLogger(__name__)

HEARTBEAT = 2.0
"""Seconds without a word after which a client is told that somebody is there."""
SEND_TIMEOUT = 30.0
MAX_ANSWERS = 100
AT_ONCE = 100
"""Updates that are taken from the hub together."""
MAX_CLIENTS = 1_000

Answer = Callable[[Mapping[str, Any]], dict[str, Any]]
Deed = Callable[[Mapping[str, Any], Identity], Awaitable[dict[str, Any]]]
"""What takes a while, and is done for somebody."""


class ClientSockets:
    """All clients of one coordinator. Runs on its event loop.

    Args:
        answers: type of a request -> returns the fields of its answer, of the request's own.
        deeds: the same of requests that take a while.
    """

    def __init__(
        self, updates: Updates, answers: Mapping[str, Answer], deeds: Mapping[str, Deed] | None = None
    ) -> None:
        self._updates = updates
        self._answers = answers
        self._deeds = deeds or {}
        self._clients: set[_Client] = set()
        updates.listeners.append(self._wake)

    async def serve(self, socket: WebSocket) -> None:
        """Talk with one client until its connection ends."""
        if len(self._clients) >= MAX_CLIENTS:
            await socket.close(1013, f"{MAX_CLIENTS} clients are connected here: try another coordinator")
            return
        await socket.accept()
        client = _Client(socket, self._updates, self._answers, identity_of(socket.scope), self._deeds)
        self._clients.add(client)
        writing = asyncio.create_task(client.write())
        try:
            reading = asyncio.create_task(client.read())
            await asyncio.wait([reading, writing], return_when=asyncio.FIRST_COMPLETED)
            for job in (reading, writing):
                job.cancel()
            ends = await asyncio.gather(reading, writing, return_exceptions=True)
            for end in ends:
                if isinstance(end, Exception) and not isinstance(
                    end, WebSocketDisconnect | RuntimeError | TimeoutError
                ):
                    log.error("a client's connection", exc_info=end)
            with contextlib.suppress(Exception):  # it may be closed already
                await socket.close(1001)
        finally:
            writing.cancel()
            self._clients.discard(client)

    def _wake(self) -> None:
        for client in self._clients:
            client.news.set()


class _Client:
    def __init__(
        self,
        socket: WebSocket,
        updates: Updates,
        answers: Mapping[str, Answer],
        identity: Identity,
        deeds: Mapping[str, Deed],
    ) -> None:
        self._identity = identity
        self._deeds = deeds
        self.news = asyncio.Event()
        self._socket = socket
        self._updates = updates
        self._hub = updates.hub
        self._answers = answers
        self._told: asyncio.Queue[dict[str, Any]] = asyncio.Queue(MAX_ANSWERS)
        self._subscriptions: dict[str, tuple[Subscription, bool]] = {}
        """Channel -> the subscription, and whether it wants details."""

    async def read(self) -> None:
        """Answer what the client says, until it goes."""
        while True:
            received = await self._socket.receive()
            if received["type"] == "websocket.disconnect":
                return
            await self._told.put(await self._answer(received.get("text") or ""))
            self.news.set()

    async def write(self) -> None:
        """Tell what there is to tell, until the socket ends."""
        while True:
            self.news.clear()
            sequence = self._hub.sequence
            if not await self._write_all():
                try:
                    async with asyncio.timeout(HEARTBEAT):
                        await self.news.wait()
                except TimeoutError:
                    await self._send({"type": "heartbeat", "sequence": sequence})

    async def _write_all(self) -> bool:
        """Write some of what there is; whether there was something."""
        wrote = False
        while not self._told.empty():
            await self._send(self._told.get_nowait())
            wrote = True
        for channel, (subscription, details) in list(self._subscriptions.items()):
            taken = self._hub.take(subscription, AT_ONCE)
            wrote = wrote or taken.lost or bool(taken.updates)
            if taken.lost:
                if self._subscriptions.get(channel, (None,))[0] is subscription:
                    del self._subscriptions[channel]
                await self._send(self._dropped(channel))
            for update in taken.updates:
                await self._send(message_of(update, details=details))
        return wrote

    async def _send(self, message: Mapping[str, Any]) -> None:
        async with asyncio.timeout(SEND_TIMEOUT):
            await self._socket.send_text(json.dumps(message, separators=(",", ":")))

    def _dropped(self, channel: str) -> dict[str, Any]:
        return {
            "type": "dropped",
            "channel": channel,
            "sequence": self._hub.sequence,
            "kept_since": self._hub.kept_since(channel),
            "reason": "you were too slow, or the record was read anew: something is missing; look at the lists and subscribe "
            "again",
        }

    async def _answer(self, text: str) -> dict[str, Any]:
        try:
            message = read_client(text)
        except Unreadable as problem:
            return error(None, 422, str(problem), problem.request_id)
        limited = bool(self._identity.projects)
        if reason := reason_against(OPERATIONS[message.type], self._identity.role, limited=limited):
            return error(message, 403, reason)
        if message.type in LATER:
            return error(message, 501, LATER[message.type])
        try:
            deed = self._deeds.get(message.type)
            told = self._do(message) if deed is None else await deed(message.body, self._identity)
        except CannotSplitYet as problem:
            return error(message, 501, str(problem))
        except SettingsError as problem:
            return error(message, 422, str(problem))
        except Forbidden as problem:
            return error(message, 403, str(problem))
        except OtherRequest as problem:
            return error(message, 409, str(problem))
        except DtfError as problem:
            return error(message, 503, str(problem))
        return {"type": message.answer, "request_id": message.request_id, "success": True, **told}

    def _do(self, message: ClientMessage) -> dict[str, Any]:
        if message.type == "subscribe":
            return self._subscribe(message)
        if message.type == "unsubscribe":
            channel = read_channel(message)
            return {"channel": channel, "was_subscribed": self._subscriptions.pop(channel, None) is not None}
        return self._answers[message.type](message.body)

    def _subscribe(self, message: ClientMessage) -> dict[str, Any]:
        asked = read_subscribe(message)
        wanted = (
            narrowed_filter(self._identity, asked.wanted) if asked.channel in (TASKS, ORCHESTRATED) else asked.wanted
        )
        subscription, whole = self._hub.subscribe(asked.channel, wanted, asked.since)
        self._subscriptions[asked.channel] = subscription, asked.details
        return {
            "channel": asked.channel,
            "sequence": subscription.since,
            "gap": not whole,
            "kept_since": self._hub.kept_since(asked.channel),
        }
