"""`follow`: what changes in a farm, from any of its coordinators' WebSockets, over the death of each.

Rules that this file guards:
- A sequence is seen whole when a greater one has come, or a heartbeat with it: since that one the next coordinator is
  asked. What was told of the sequence that had begun is not told again.
- What may be missing is said, as an update of the type `gap`: the caller looks at the lists then.
- A coordinator that is silent for `SILENCE` seconds is left, though its kernel takes connections.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from dtf_lightning.errors import DtfError
from dtf_lightning.farm.http import PATIENCE, Connection, FarmRefused, FarmUnreachable
from dtf_lightning.farm.security.trust import Trust

OPEN_TIMEOUT = 1.5
"""Seconds for a connection and its handshake."""
SILENCE = 6.0
"""Seconds without a word, where a heartbeat comes every two."""
MAX_MESSAGE = 16 * 1024 * 1024


class _Broken(DtfError):
    """The socket has ended, or is silent."""


class _TimeIsUp(DtfError):
    """The caller waits no longer."""


class ClientSocket:
    """A WebSocket for one thread. Raises `_Broken` for whatever ends it, `FarmRefused` where the token is refused."""

    def __init__(self, url: str, token: str, path: str = "/ws", *, trust: Trust | None = None) -> None:
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        self._text: list[bytes] = []
        uri = parse_uri(f"{'wss' if secure else 'ws'}://{parts.netloc}{path}")
        self._protocol = ClientProtocol(uri, max_size=MAX_MESSAGE)
        host, port = parts.hostname or "", parts.port or (443 if secure else 80)
        self._socket = socket.create_connection((host, port), OPEN_TIMEOUT)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if secure:
                self._socket = (trust or Trust()).context().wrap_socket(self._socket, server_hostname=host)
            request = self._protocol.connect()
            request.headers["Authorization"] = f"Bearer {token}"
            self._protocol.send_request(request)
            self._waiting: list[Frame] = []
            while self._protocol.state is State.CONNECTING and self._protocol.handshake_exc is None:
                self._exchange(time.monotonic() + OPEN_TIMEOUT)
            self._check_handshake(url)
        except BaseException:
            self.close()
            raise

    def send(self, message: Mapping[str, Any]) -> None:
        """Send one message."""
        self._protocol.send_text(json.dumps(message).encode())
        self._flush()

    def receive(self, timeout: float) -> dict[str, Any]:
        """Return the next message."""
        deadline = time.monotonic() + timeout
        while True:
            while self._waiting:
                frame = self._waiting.pop(0)
                if frame.opcode in (Opcode.TEXT, Opcode.CONT):
                    self._text.append(bytes(frame.data))
                    if frame.fin:
                        text, self._text = b"".join(self._text), []
                        message: dict[str, Any] = json.loads(text)
                        return message
                elif frame.opcode is Opcode.CLOSE:
                    raise _Broken("the coordinator has closed the connection")
            self._exchange(deadline)

    def close(self) -> None:
        """Close it, without waiting for the other side."""
        self._socket.close()

    def _check_handshake(self, url: str) -> None:
        error = self._protocol.handshake_exc
        if isinstance(error, InvalidStatus) and error.response.status_code in (401, 403):
            told = _why(error.response.body)
            raise FarmRefused(error.response.status_code, f"the farm at {url} refused the connection: {told}", {})
        if error is not None:
            raise _Broken(str(error)) from error

    def _exchange(self, deadline: float) -> None:
        """Send what is to be sent, and take in what comes, at most until a moment on the monotonic clock."""
        self._flush()
        self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            data = self._socket.recv(65536)
        except OSError as error:
            raise _Broken(str(error) or "silent") from error
        if not data:
            raise _Broken("the connection has ended") from EOFError()
        self._protocol.receive_data(data)
        self._waiting += [event for event in self._protocol.events_received() if isinstance(event, Frame)]
        self._flush()

    def _flush(self) -> None:
        try:
            for data in self._protocol.data_to_send():
                if data:
                    self._socket.sendall(data)
        except OSError as error:
            raise _Broken(str(error)) from error


def _why(body: bytes | bytearray | None) -> str:
    """Return what a coordinator says of a refusal."""
    try:
        return str(json.loads(body or b"")["error"])
    except (ValueError, KeyError, TypeError):  # a proxy's answer
        return "is the token that of this farm?"


@dataclass
class _Position:
    """What was seen so far."""

    whole: int | None
    """The greatest sequence of which everything was seen; `None`: nothing yet."""
    begun: int = 0
    told: set[tuple[Any, ...]] = field(default_factory=set)
    """What was told of the sequence `begun`."""

    def is_new(self, message: Mapping[str, Any]) -> bool:
        """Whether an update was not told before; then it is taken in."""
        sequence = message["sequence"]
        if sequence > self.begun:
            self.begun, self.told = sequence, set()
        self.seen(sequence - 1)  # they come in their order
        key = tuple(message.get(name) for name in ("type", "task_id", "status", "attempt", "node_id", "term"))
        if sequence == self.begun and key in self.told:
            return False
        self.told.add(key)
        return True

    def seen(self, sequence: int) -> None:
        """Everything up to a sequence was seen."""
        self.whole = max(self.whole or 0, sequence)


def follow(
    connection: Connection,
    channel: str,
    wanted: Mapping[str, Any],
    *,
    since: int | None = None,
    details: bool = False,
    until: float | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield what changes, and survive every coordinator but the last.

    The first that is yielded is `{"type": "subscribed", "sequence": N, "url": ...}`: from there on nothing is missing. An
    update of the type `gap`, with the same fields, says that something may be: what that coordinator (`url`) shows from then
    on is not older than what is yielded next.

    Args:
        connection: knows the coordinators.
        wanted: the filter: a field's name and its value, or a list of values.
        since: a sequence, such as a plan's `revision`.
        details: with the whole task, where it is done.
        until: on the monotonic clock; `TimeoutError` is raised then.

    Raises `FarmUnreachable` if no coordinator answers for 20 s, and `FarmRefused` for what the farm refuses.
    """
    position = _Position(since)
    first = True
    deadline = time.monotonic() + PATIENCE
    while True:
        if connection.ended:
            raise FarmUnreachable("this client was closed")
        try:
            url = connection.url
            line = ClientSocket(url, connection.token, trust=connection.trust)
            connection.faults.answered()
        except (OSError, WebSocketException, _Broken) as error:
            if until is not None and time.monotonic() >= until:
                raise TimeoutError("the time to wait is over") from error
            problem = connection.unreachable(error)
            if time.monotonic() > deadline or connection.faults.hopeless(connection.urls):
                raise problem from error
            connection.turn()
            continue
        try:
            for message in _subscribed(line, channel, wanted, position, details, until):
                if connection.ended:
                    raise FarmUnreachable("this client was closed")
                deadline = time.monotonic() + PATIENCE
                if message["type"] == "heartbeat":
                    continue
                if message["type"] in ("subscribed", "gap"):
                    message["url"] = url
                if message["type"] != "subscribed" or first:
                    yield message
                first = False
        except _TimeIsUp:
            raise TimeoutError("the time to wait is over") from None
        except (OSError, WebSocketException, _Broken):
            connection.turn()
        finally:
            line.close()


def _subscribed(
    line: ClientSocket,
    channel: str,
    wanted: Mapping[str, Any],
    position: _Position,
    details: bool,
    until: float | None,
) -> Iterator[dict[str, Any]]:
    """Yield from one coordinator, until it ends or does not keep up."""
    line.send({"type": "subscribe", "channel": channel, "filter": wanted, "since": position.whole, "details": details})
    answer = line.receive(SILENCE)
    while answer["type"] != "subscribe_response":
        answer = line.receive(SILENCE)
    if not answer["success"]:
        raise FarmRefused(answer["status"], answer["error"], answer)
    position.seen(answer["sequence"])
    yield {"type": "gap" if answer["gap"] else "subscribed", "sequence": answer["sequence"]}
    while True:
        try:
            message = line.receive(SILENCE if until is None else min(SILENCE, until - time.monotonic()))
        except _Broken:
            if until is not None and time.monotonic() >= until:
                raise _TimeIsUp("no more") from None
            raise
        if message["type"] == "heartbeat":
            position.seen(message["sequence"])
            yield message
        elif message["type"] == "dropped":
            position.seen(message["sequence"])
            yield {"type": "gap", "sequence": message["sequence"]}
            return
        elif position.is_new(message):
            yield message
