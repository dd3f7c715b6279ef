"""Requests to a forge's API, by the standard library alone.

Rules that this file guards:
- The token goes to the API's own host over TLS (or to this machine), and nowhere else: redirects are not followed.
- What was not answered, or "not now", is asked again, three times in all.
"""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

from dtf_lightning.errors import DtfError, SettingsError

T = TypeVar("T")

TRIES = 3
PAUSE = 1.0
TIMEOUT = 20.0
_NOT_NOW = (429, 500, 502, 503, 504)
_HERE = ("127.0.0.1", "localhost", "::1")


class ForgeRefused(DtfError):
    """The forge answered with an error, or not at all (`status` 0)."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow none: the token would go along."""


class ForgeApi:
    """One forge.

    Args:
        base: address of the API.
        headers: of every request, the token among them.
        pause: waits for so many seconds.
    """

    def __init__(
        self, base: str, headers: Mapping[str, str], *, pause: Callable[[float], object] | None = None
    ) -> None:
        parts = urlsplit(base)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _HERE):
            raise SettingsError(
                f"the forge's API is at {base or 'no address'}: expected one with https, a token is sent there"
            )
        self._base = base.rstrip("/")
        self._headers = {"User-Agent": "dtf-lightning", "Content-Type": "application/json", **headers}
        self._pause = pause or threading.Event().wait
        self._opener = urllib.request.build_opener(_NoRedirect)

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Return the answer's JSON. Raises `ForgeRefused`. What is asked must do no harm twice."""
        return self.insist(lambda: self.ask_once(method, path, body))

    def insist(self, tried: Callable[[], T]) -> T:
        """Return what it returns; where the forge did not answer, or "not now", it is tried again after a pause."""
        for number in range(1, TRIES):
            try:
                return tried()
            except ForgeRefused as refusal:
                if refusal.status and refusal.status not in _NOT_NOW:
                    raise
                self._pause(PAUSE * 2**number)
        return tried()

    def ask_once(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        """As `ask`, without asking again."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data=data, method=method, headers=dict(self._headers))
        asked = f"{method} {self._base}{path}"
        try:
            with self._opener.open(request, timeout=TIMEOUT) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            with error:
                raise ForgeRefused(error.code, f"{asked}: {error.code} {_said(error.read())}") from error
        except OSError as error:
            raise ForgeRefused(0, f"{asked}: no answer ({error})") from error
        try:
            return json.loads(text) if text else None
        except ValueError as error:
            raise ForgeRefused(0, f"{asked}: the answer is no JSON") from error


def _said(text: bytes) -> str:
    """The forge's own words, short."""
    try:
        body = json.loads(text)
        message = body.get("message") or body.get("error") or body
    except (ValueError, AttributeError):
        message = text.decode(errors="replace")
    return str(message)[:300]
