"""Requests to a farm's coordinators, by the standard library alone: `dtf farm run` must start quickly.

Rules that this file guards:
- Any coordinator will do: where one does not answer, the next is asked. That is safe for what is asked here, since every
  change is idempotent by an id that the client has chosen, or by an offset.
- An answer whose connection ends in its middle is no answer: it is asked again.
- An answer that says "not now" (503, and 429 with the seconds after which to ask again) is asked again until the time is over.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlencode, urlsplit

from dtf_lightning.errors import DtfError, SettingsError
from dtf_lightning.farm.security.trust import Trust, WireFaults

T = TypeVar("T")

ANSWER_TIMEOUT = 5.0
"""Seconds for an answer's head, beside those that the request itself asks the coordinator to wait: one that stands still
takes connections, and nothing more comes."""
SILENCE = 30.0
"""Seconds without a byte of a stream, after which it is opened anew: a task may be silent, a coordinator may stand still."""
STORED = 60.0
"""Seconds for an answer after a file was sent: it is written to a disk or to an object store meanwhile."""
PATIENCE = 20.0
"""Seconds for which coordinators are asked again that do not answer."""
PAUSE = 0.2
CHUNK = 256 * 1024
_TOO_MANY = 429
_CLOSED_MEANWHILE = (
    http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, ssl.SSLZeroReturnError,
)  # fmt: skip
"""What a connection says that was kept open, and that the coordinator has closed."""


class FarmUnreachable(DtfError):
    """No coordinator answered."""


class FarmUntrusted(FarmUnreachable):
    """No coordinator can be spoken with, and waiting does not mend it: its certificate, or TLS where there is none."""


class FarmRefused(DtfError):
    """A coordinator answered with an error. `status` is HTTP's, `body` its answer."""

    def __init__(self, status: int, message: str, body: dict[str, Any]) -> None:
        super().__init__(message)
        self.status = status
        self.body = body

    @property
    def retry_after(self) -> float:
        """Seconds after which it may be asked again, where there were too many requests; 0 where that would not help."""
        told = self.body.get("retry_after", 0.0)
        return float(told) if self.status == _TOO_MANY and isinstance(told, int | float) else 0.0


@dataclass(eq=False)
class _Line:
    connection: http.client.HTTPConnection
    url: str


class Connection:
    """Thread-safe: each thread has a connection of its own.

    Args:
        urls: of coordinators, all alike.
        token: the farm's, or one that it has signed; or what returns one that is good, as `Credentials.token`.
        patience: seconds for which coordinators are asked again.
        trust: by which coordinators' certificates are verified; `None`: by what this machine knows.
    """

    def __init__(
        self,
        urls: tuple[str, ...],
        token: str | Callable[[], str],
        *,
        patience: float = PATIENCE,
        trust: Trust | None = None,
    ) -> None:
        self.urls = urls
        self._token = token
        self.trust = trust or Trust()
        self.faults = WireFaults(self.trust)
        self.patience = patience
        self.ended = False
        """Whether `interrupt` was called: nothing is asked any more."""
        self._local = threading.local()
        self._lock = threading.Lock()
        self._lines: weakref.WeakSet[_Line] = weakref.WeakSet()
        """Of all threads; that of a thread which has ended goes with it."""
        self._preferred = 0

    @property
    def url(self) -> str:
        """Of the coordinator that is asked next."""
        return self.urls[self._preferred % len(self.urls)]

    @property
    def token(self) -> str:
        """One that is good now."""
        return self._token if isinstance(self._token, str) else self._token()

    def ask(self, method: str, path: str, body: Any = None, **query: object) -> Any:
        """Return the answer's JSON. Raises `FarmRefused`, `FarmUnreachable` and, at once, `FarmUntrusted`."""
        return self._whole(method, path, None if body is None else json.dumps(body).encode(), query)

    def send(self, method: str, path: str, data: bytes, **query: object) -> Any:
        """As `ask`, with bytes for a body."""
        return self._whole(method, path, data, query)

    def send_file(self, method: str, path: str, file: Path, **query: object) -> Any:
        """As `ask`, with a file's content for a body. Raises `OSError` for one that cannot be read."""
        return self._whole(method, path, file, query)

    def stream(self, path: str, **query: object) -> tuple[http.client.HTTPResponse, Iterator[bytes]]:
        """Return the answer's head, and its body as it comes. Raises also while it is read."""
        answer = self._request("GET", path, None, query, lambda answer: answer)
        return answer, _chunks(answer)

    def unreachable(self, error: Exception) -> FarmUnreachable:
        """Return in words that the coordinator `url` could not be spoken with."""
        told = self.faults.failed(self.url, error)
        if told is not None:
            return FarmUntrusted(told)
        return FarmUnreachable(
            f"the farm at {', '.join(self.urls)} does not answer ({_words(error)}); is it up? `dtf farm up` starts one"
        )

    def turn(self) -> None:
        """Leave this thread's coordinator, after a moment, for the next one."""
        self._drop()
        time.sleep(PAUSE)

    def close(self) -> None:
        """Close this thread's connection."""
        line: _Line | None = getattr(self._local, "line", None)
        if line is not None:
            line.connection.close()
            self._local.line = None

    def interrupt(self) -> None:
        """End what any thread waits for here: it is told `FarmUnreachable`, and so is whoever asks from now on."""
        self.ended = True
        for line in self._all_lines():
            with contextlib.suppress(OSError):
                if line.connection.sock is not None:
                    line.connection.sock.shutdown(socket.SHUT_RDWR)

    def close_all(self) -> None:
        """Close the connections of all threads, none of which asks anything now."""
        for line in self._all_lines():
            line.connection.close()

    def _all_lines(self) -> list[_Line]:
        with self._lock:
            return list(self._lines)

    def _whole(self, method: str, path: str, data: bytes | Path | None, query: dict[str, object]) -> Any:
        text = self._request(method, path, data, query, lambda answer: answer.read())
        return json.loads(text) if text else None

    def _request(
        self,
        method: str,
        path: str,
        data: bytes | Path | None,
        query: dict[str, object],
        take: Callable[[http.client.HTTPResponse], T],
    ) -> T:
        """Return what `take` makes of an answer. What ends while it does is asked again, as what is not answered."""
        told = {name: str(value) for name, value in query.items() if value is not None}
        target = f"{path}?{urlencode(told)}" if told else path
        wait = STORED if isinstance(data, Path) else float(told.get("wait", 0))
        if isinstance(data, Path):
            data.stat()  # what is wrong with the file is not the farm's silence
        deadline = time.monotonic() + self.patience + wait
        tried = 0
        while True:
            if self.ended:
                raise FarmUnreachable("this client was closed")
            tried += 1
            pause = PAUSE
            try:
                answer = self._try(method, target, data, ANSWER_TIMEOUT + wait)
                self.faults.answered()
                refusal = _refusal(answer) if answer.status >= 400 else None
                if refusal is None:
                    return take(answer)
            except (OSError, http.client.HTTPException) as error:
                problem: DtfError = self.unreachable(error)
                self._drop()
                if self.faults.hopeless(self.urls):
                    raise problem from error
            else:
                if refusal.status != 503 and not refusal.retry_after:
                    raise refusal
                problem = refusal
                pause = max(refusal.retry_after, PAUSE)
                if len(self.urls) > 1 and refusal.status == 503:
                    self._drop()  # another coordinator may be able to
            if time.monotonic() + pause >= deadline + PAUSE and tried >= len(self.urls):
                raise problem
            time.sleep(pause)

    def _try(self, method: str, target: str, data: bytes | Path | None, timeout: float) -> http.client.HTTPResponse:
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        if isinstance(data, Path):
            headers |= {"Content-Type": "application/octet-stream", "Content-Length": str(data.stat().st_size)}
        for fresh in (False, True):
            line = self._line(fresh=fresh)
            try:
                _set_timeout(line.connection, timeout)
                _request(line.connection, method, target, data, headers)
                answer = line.connection.getresponse()
                if answer.length is None and not answer.chunked:
                    raise http.client.IncompleteRead(b"")  # Python takes a head that was cut for a whole one
                _set_timeout(line.connection, SILENCE)
                return answer
            except _CLOSED_MEANWHILE:
                if fresh:
                    raise
            except http.client.ResponseNotReady:  # a stream before this was not read to its end
                if fresh:
                    raise
        raise AssertionError

    def _line(self, *, fresh: bool) -> _Line:
        line: _Line | None = getattr(self._local, "line", None)
        if line is None or fresh:
            self.close()
            url = self.url
            parts = urlsplit(url)
            if parts.hostname is None:
                raise SettingsError(f"{url!r} is no address of a farm")
            line = _Line(self._connection(parts), url)
            self._local.line = line
            with self._lock:
                self._lines.add(line)
        return line

    def _connection(self, parts: SplitResult) -> http.client.HTTPConnection:
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "https":
            return http.client.HTTPSConnection(host, port or 443, timeout=ANSWER_TIMEOUT, context=self.trust.context())
        return http.client.HTTPConnection(host, port or 80, timeout=ANSWER_TIMEOUT)

    def _drop(self) -> None:
        self.close()
        self._preferred += 1


def _request(
    connection: http.client.HTTPConnection, method: str, target: str, data: bytes | Path | None, headers: dict[str, str]
) -> None:
    if isinstance(data, Path):
        with data.open("rb") as file:
            connection.request(method, target, file, headers)
    else:
        connection.request(method, target, data, headers)


def _set_timeout(connection: http.client.HTTPConnection, timeout: float) -> None:
    connection.timeout = timeout
    if connection.sock is not None:
        connection.sock.settimeout(timeout)


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _chunks(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    while chunk := answer.read1(CHUNK):
        yield chunk


def _refusal(answer: http.client.HTTPResponse) -> FarmRefused:
    text = answer.read()
    try:
        body = json.loads(text)
        message = str(body["error"])
    except (ValueError, KeyError, TypeError):
        body, message = {}, text.decode(errors="replace")[:500] or answer.reason
    return FarmRefused(answer.status, message, body)
