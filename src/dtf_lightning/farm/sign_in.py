"""What a browser signs in with, made from the farm's token: a link that is good once, and the cookie that follows. Pure.

Rules that this file guards:
- Both are made and checked with a key of their own, so that none of them tells the token or stands for the other. Every
  coordinator of the farm makes and takes the same ones, and remembers none.
- Each says until when it is good; nobody can make that later. A new token ends all of them.
- That a link is used once is remembered by `UsedLinks`, in the folder that all coordinators of a farm share.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import re
import secrets
from pathlib import Path

LINK_SECONDS = 600.0
"""For which a link is good."""
SESSION_SECONDS = 7 * 86400.0
"""For which a browser stays signed in."""
_SHAPE = re.compile(r"(\d{1,12})\.([A-Za-z0-9_-]{16,64})\.([A-Za-z0-9_-]{43})")


class SignIn:
    """Makes and checks what browsers sign in with.

    Args:
        token: the farm's.
    """

    def __init__(self, token: str) -> None:
        self._key = hmac.digest(token.encode(), b"dtf farm page", "sha256")
        # A browser has one set of cookies for all ports of a machine: two farms on it must not sign each other out.
        self.cookie = f"dtf_farm_{hmac.digest(self._key, b'cookie', 'sha256').hex()[:8]}"
        """Name of the cookie."""

    def link(self, url: str, now: float) -> str:
        """Return an address under a coordinator's `url` that signs a browser in, once, within `LINK_SECONDS`."""
        return f"{url}/sign-in?code={self._make('link', now + LINK_SECONDS)}"

    def link_name(self, code: str, now: float) -> str | None:
        """Return what tells this link's code from all others; `None` if it is not good (any more)."""
        return self._check("link", code, now)

    def session(self, now: float) -> str:
        """Return the value of a cookie that is good for `SESSION_SECONDS`."""
        return self._make("session", now + SESSION_SECONDS)

    def is_session(self, value: str, now: float) -> bool:
        """Whether a cookie's value is good."""
        return self._check("session", value, now) is not None

    def _make(self, purpose: str, until: float) -> str:
        name = f"{int(until)}.{secrets.token_urlsafe(16)}"
        return f"{name}.{self._sign(purpose, name)}"

    def _check(self, purpose: str, text: str, now: float) -> str | None:
        told = _SHAPE.fullmatch(text)
        if told is None:
            return None
        until, nonce, signature = told.groups()
        name = f"{until}.{nonce}"
        return name if hmac.compare_digest(signature, self._sign(purpose, name)) and now < int(until) else None

    def _sign(self, purpose: str, name: str) -> str:
        signature = hmac.digest(self._key, f"{purpose}.{name}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(signature).decode().rstrip("=")


class UsedLinks:
    """Which links were used: an empty file for each, until it would not be good any more.

    Args:
        folder: shared by all coordinators of the farm.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def use(self, name: str, now: float) -> bool:
        """Use a link, by what `SignIn.link_name` returned; whether nobody has before. Raises `OSError`."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in os.listdir(self._folder):
            if int(old.partition(".")[0]) < now:
                with contextlib.suppress(FileNotFoundError):
                    (self._folder / old).unlink()
        try:
            os.close(os.open(self._folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return False
        return True
