"""JSON over HTTP to others' servers, by the standard library: one request, no redirect, and an error in words."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from dtf_lightning.errors import DtfError

MAX_ANSWER = 1024 * 1024


class NotTaken(DtfError):
    """The other side did not take it."""


def post(
    url: str, body: bytes, headers: Mapping[str, str], timeout: float, *, method: str = "POST"
) -> tuple[int, bytes]:
    """Send a request, and return the answer's status and body. Raises `NotTaken` for a status that is no success, and `OSError`.

    The address is in no error: that of a chat's webhook is a secret.
    """
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    connection = (
        http.client.HTTPSConnection(host, parts.port, timeout=timeout, context=ssl.create_default_context())
        if secure
        else http.client.HTTPConnection(host, parts.port, timeout=timeout)
    )
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target, body or None, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        told = answer.read(MAX_ANSWER)
    except http.client.HTTPException as error:
        raise NotTaken(f"{host} gave no answer that is HTTP: {error!r}") from error
    finally:
        connection.close()
    if not 200 <= answer.status < 300:
        raise NotTaken(f"{host} answered {answer.status}: {told[:200].decode(errors='replace')}")
    return answer.status, told


def as_bytes(body: Any) -> bytes:
    """Return JSON as it is sent, and signed."""
    return json.dumps(body, separators=(",", ":"), sort_keys=True).encode()
