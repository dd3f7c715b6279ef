"""The keys that sign a farm's tokens: made, sealed for etcd, and chosen. Pure but for the randomness of a new key.

Rules that this file guards:
- etcd holds the private half only as sealed with a key that is derived from the farm's own token (HKDF, ChaCha20-Poly1305);
  name and farm are bound into the seal, so that a record cannot be moved. The public half is not stored: it is computed.
- A record that this farm's token does not open is no key: who can write to etcd cannot make tokens by that, and with a new
  token of the farm all that were signed before are refused.
- The newest key signs, once it has been there for `SETTLING` seconds: until then all coordinators have heard of it. Older
  ones verify until the longest life of a token has passed since the next one came.
"""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from dtf_lightning.errors import ProtocolError, SettingsError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

LONGEST_LIFE = 366 * 86400.0
"""Seconds for which a token can be good, at most."""
SETTLING = 10.0
"""Seconds for every coordinator to hear of a new key, before anything is signed with it."""
SHARED = "jwt-secret"
SHORTEST_SHARED = 32
"""Bytes of a secret that others share."""
_NONCE = 12


@dataclass(frozen=True, kw_only=True)
class SigningKey:
    """A key of the farm."""

    name: str
    """Its `kid`."""
    created: float
    """Seconds since the epoch."""
    revision: int
    """At which etcd took it: the order of keys."""
    private: Ed25519PrivateKey = field(repr=False, compare=False)

    @cached_property
    def public(self) -> Ed25519PublicKey:
        """What its signatures are verified with."""
        return self.private.public_key()


@dataclass(frozen=True, kw_only=True)
class SharedSecret:
    """A secret by which others make tokens for this farm (HS256). Raises `SettingsError` for one that can be guessed."""

    secret: bytes = field(repr=False)
    name: str = SHARED
    """Its `kid`; no key of the farm is called so."""

    def __post_init__(self) -> None:
        if len(self.secret) < SHORTEST_SHARED:
            raise SettingsError(
                f"jwt_secret has {len(self.secret)} bytes, and HS256 needs {SHORTEST_SHARED} (RFC 7518, section 3.2): "
                "`openssl rand -hex 32` makes one"
            )


def derived_key(secret: str, purpose: bytes, *, salt: bytes | None = None) -> bytes:
    """Return 32 bytes that the farm's own token gives for one purpose, and that tell neither it nor another's (HKDF, RFC 5869)."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), 32, salt=salt, info=purpose).derive(secret.encode())


class Sealer:
    """Seals and opens private keys.

    Args:
        secret: the farm's own token.
    """

    def __init__(self, secret: str, farm: str) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

        self._cipher = ChaCha20Poly1305(derived_key(secret, b"dtf farm: signing keys", salt=farm.encode()))
        self._farm = farm

    def seal_new(self) -> tuple[str, str]:
        """Return a new key's name and itself, sealed."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        name, nonce = secrets.token_hex(8), os.urandom(_NONCE)
        data = self._cipher.encrypt(nonce, Ed25519PrivateKey.generate().private_bytes_raw(), self._bound(name))
        return name, base64.b64encode(nonce + data).decode()

    def open(self, name: str, sealed: str, *, created: float, revision: int) -> SigningKey:
        """Return the key of a record. Raises `ProtocolError` for one that this farm's token does not open."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        try:
            data = base64.b64decode(sealed, validate=True)
            private = self._cipher.decrypt(data[:_NONCE], data[_NONCE:], self._bound(name))
            key = Ed25519PrivateKey.from_private_bytes(private)
        except (InvalidTag, ValueError) as error:
            raise ProtocolError(f"the signing key {name} was not made with this farm's token") from error
        return SigningKey(name=name, created=created, revision=revision, private=key)

    def _bound(self, name: str) -> bytes:
        return f"{self._farm}\0{name}".encode()


def signer(keys: Collection[SigningKey], now: float) -> SigningKey | None:
    """Return the key that signs: the newest that all know, or the oldest where none is that old. `None` without any."""
    ordered = sorted(keys, key=lambda key: key.revision)
    settled = [key for key in ordered if key.created + SETTLING <= now]
    return settled[-1] if settled else ordered[0] if ordered else None


def past(keys: Iterable[SigningKey], now: float) -> list[SigningKey]:
    """Return the keys by which no token can be good any more."""
    ordered = sorted(keys, key=lambda key: key.revision)
    return [key for key, following in pairwise(ordered) if following.created + SETTLING + LONGEST_LIFE < now]
