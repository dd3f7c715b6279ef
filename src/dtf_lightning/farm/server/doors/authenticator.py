"""`Authenticator`: who asks, by what a coordinator knows of keys and of tokens that were revoked.

Rules that this file guards:
- The farm's own token is compared in constant time. Every other one is verified by the keys that the record shows.
- A token that was verified is remembered by its digest. All of them are forgotten with every revocation and every change of
  the keys, as the watch shows it; when one expires is looked at each time.
- A connection whose token is good no more is ended.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dtf_lightning.clock import Clock
from dtf_lightning.errors import ProtocolError
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Change, Mirror
from dtf_lightning.farm.record.tokens.values import RevokedRecord, SigningKeyRecord
from dtf_lightning.farm.security.identity import OWNER, Identity, Unauthorised
from dtf_lightning.farm.security.keys import Sealer, SharedSecret, SigningKey
from dtf_lightning.farm.security.tokens import is_signed, read_token, refuse_expired

log = logging.getLogger(__name__)

REMEMBERED = 10_000
"""Tokens: a hundred bytes each, and more than a farm has."""

Close = Callable[[str], Coroutine[Any, Any, None]]
"""Ends a connection, and says why."""


@dataclass(eq=False)
class _Open:
    identity: Identity
    close: Close
    timer: asyncio.TimerHandle | None = None


class Authenticator:
    """Runs on the coordinator's event loop. `changed` is to be called for every change of the record.

    Args:
        secret: the farm's own token.
        mirror: of the farm's record.
        shared: the secret by which others make tokens for this farm.
    """

    def __init__(
        self, secret: str, farm: str, mirror: Mirror, clock: Clock, shared: SharedSecret | None = None
    ) -> None:
        self._shared = shared
        self.farm = farm
        self.remembered: dict[bytes, Identity] = {}
        """Digest of a token -> whose it is."""
        self._own = b"Bearer " + secret.encode()
        self._secret = secret
        self._mirror = mirror
        self._clock = clock
        self._sealer: Sealer | None = None
        self._keys: dict[str, SigningKey] | None = None
        self._open: set[_Open] = set()
        self._closing: set[asyncio.Task[None]] = set()

    # --- who asks ----------------------------------------------------------------------------------------------------

    def identify(self, authorization: bytes) -> Identity:
        """Return who sends a header `Authorization`. Raises `Unauthorised`."""
        if hmac.compare_digest(authorization, self._own):
            return OWNER
        scheme, _, text = authorization.decode("latin-1").partition(" ")
        if scheme != "Bearer" or not is_signed(text):
            raise Unauthorised(
                "a token is needed, as `Authorization: Bearer TOKEN`"
                if not text
                else "this is neither the farm's own token nor one that it has signed"
            )
        return self.read(text)

    def read(self, text: str) -> Identity:
        """Return whose a signed token is. Raises `Unauthorised`."""
        now, digest = self._clock.wall(), hashlib.sha256(text.encode("latin-1", "replace")).digest()
        identity = self.remembered.get(digest)
        if identity is None:
            identity = read_token(text, self.keys(), farm=self.farm, now=now, shared=self._shared)
            self._refuse_revoked(identity)
            if len(self.remembered) >= REMEMBERED:
                self.remembered.clear()
            self.remembered[digest] = identity
        refuse_expired(identity, now)
        return identity

    def keys(self) -> dict[str, SigningKey]:
        """The keys that the record shows and this farm's token opens, by name."""
        if self._keys is None:
            self._keys = {}
            for (name,), held in self._mirror.all(Kind.SIGNING_KEY).items():
                assert isinstance(held.value, SigningKeyRecord)
                told = held.value
                try:
                    key = self.sealer().open(name, told.sealed, created=told.created, revision=held.create_revision)
                except ProtocolError as error:
                    log.warning("%s: what it has signed is not taken", error)
                else:
                    self._keys[name] = key
        return self._keys

    def sealer(self) -> Sealer:
        """What seals new keys."""
        self._sealer = self._sealer or Sealer(self._secret, self.farm)
        return self._sealer

    def _refuse_revoked(self, identity: Identity) -> None:
        for name in identity.names:
            if (held := self._mirror.get(Kind.REVOKED, name)) is not None:
                assert isinstance(held.value, RevokedRecord)
                raise Unauthorised(f"this token was revoked: {held.value.reason or 'no reason was given'}")

    # --- what ends ---------------------------------------------------------------------------------------------------

    def changed(self, change: Change) -> None:
        """The record shows a change."""
        if change.kind is Kind.SIGNING_KEY:
            self._keys = None
        elif change.kind is not Kind.REVOKED:
            return
        self.remembered.clear()
        if change.kind is Kind.REVOKED:
            for opened in [one for one in self._open if change.names[0] in one.identity.names]:
                self._end(opened, "its token was revoked")
        elif change.after is None:
            for opened in [one for one in self._open if one.identity is not OWNER]:
                self._end(opened, "a key that signs tokens has gone: show your token again")

    @contextmanager
    def connected(self, identity: Identity, close: Close) -> Iterator[None]:
        """Inside, a connection is open: `close` is called when the token is good no more."""
        opened = _Open(identity, close)
        if identity.expires is not None:
            left = max(identity.expires - self._clock.wall(), 0.0)
            opened.timer = asyncio.get_running_loop().call_later(left, self._end, opened, "its token's time is over")
        self._open.add(opened)
        try:
            yield
        finally:
            self._open.discard(opened)
            if opened.timer is not None:
                opened.timer.cancel()

    def _end(self, opened: _Open, reason: str) -> None:
        if opened in self._open:
            self._open.discard(opened)
            task = asyncio.create_task(opened.close(reason))
            self._closing.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._closing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("a connection that was to be ended has ended: %r", error)
