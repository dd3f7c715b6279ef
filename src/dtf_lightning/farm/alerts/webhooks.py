"""Handlers that post JSON: a webhook with everything, signed; and the shapes that chats take.

A webhook's receiver knows what it was told by `Idempotency-Key`, and that this farm said it by `X-Dtf-Signature`:
`t=SECONDS,v1=HEX`, where HEX is HMAC-SHA256 of `SECONDS.BODY` under the secret. `is_signed` checks that.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from dtf_lightning.farm.alerts.notice import Notice
from dtf_lightning.farm.alerts.posting import as_bytes, post
from dtf_lightning.farm.alerts.secrets import read_secret

SIGNATURE = "X-Dtf-Signature"
TOLERANCE = 300.0
"""Seconds by which a signature may be older than its receiver's clock says."""


def signature(secret: bytes, body: bytes, at: int) -> str:
    """Return what signs a body. `at`: seconds since the epoch."""
    return f"t={at},v1={_digest(secret, body, at)}"


def is_signed(secret: bytes, body: bytes, header: str, now: float) -> bool:
    """Whether a header signs a body, lately. For receivers of a webhook."""
    told = dict(part.partition("=")[::2] for part in header.split(","))
    if not told.get("t", "").isdecimal():
        return False
    at = int(told["t"])
    return abs(now - at) <= TOLERANCE and hmac.compare_digest(_digest(secret, body, at), told.get("v1", ""))


def _digest(secret: bytes, body: bytes, at: int) -> str:
    return hmac.new(secret, f"{at}.".encode() + body, sha256).hexdigest()


@dataclass(frozen=True, kw_only=True)
class WebhookHandler:
    """Posts all of a notice."""

    url: str
    secret_file: Path | None = None
    wall: Callable[[], float] = time.time

    def send(self, notice: Notice, timeout: float) -> None:
        """See `Handler`."""
        body = as_bytes(notice.as_json())
        headers = {"Idempotency-Key": notice.key}
        if self.secret_file is not None:
            headers[SIGNATURE] = signature(read_secret(self.secret_file), body, int(self.wall()))
        post(self.url, body, headers, timeout)


@dataclass(frozen=True, kw_only=True)
class ChatHandler:
    """Posts a notice in the shape that a chat takes."""

    url: str
    shape: Callable[[Notice], dict[str, Any]]

    def send(self, notice: Notice, timeout: float) -> None:
        """See `Handler`."""
        post(self.url, as_bytes(self.shape(notice)), {"Idempotency-Key": notice.key}, timeout)


def slack_shape(notice: Notice) -> dict[str, Any]:
    """Return what Slack's incoming webhooks take, and Mattermost's and Rocket.Chat's."""
    text = _escaped(notice.text)
    blocks = [{"type": "section", "text": {"type": "mrkdwn", "text": text[:3000]}}]
    return {"text": _escaped(notice.title), "blocks": blocks}


def _escaped(text: str) -> str:
    """Names of workers and tests are text, and call nobody (`<!channel>`)."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


_COLOURS = {"critical": "attention", "warning": "warning"}


def teams_shape(notice: Notice) -> dict[str, Any]:
    """Return what a workflow of Microsoft Teams takes: an adaptive card."""
    colour = "good" if notice.step == "resolved" else _COLOURS.get(notice.severity, "default")
    lines = notice.text.splitlines()[1:]
    body: list[dict[str, Any]] = [
        {"type": "TextBlock", "text": notice.title, "weight": "bolder", "color": colour, "wrap": True},
        {"type": "TextBlock", "text": "\n\n".join(line for line in lines if line), "wrap": True},
    ]
    card = {
        "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
        "type": "AdaptiveCard",
        "version": "1.4",
        "body": body,
        "actions": [{"type": "Action.OpenUrl", "title": "The farm", "url": f"{notice.url}/cluster"}],
    }
    content = {"contentType": "application/vnd.microsoft.card.adaptive", "content": card}
    return {"type": "message", "attachments": [content]}
