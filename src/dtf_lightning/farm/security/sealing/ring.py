"""`Ring`: the keys of the secrets' store, and values sealed with them. Pure but for randomness.

    # dtf farm secret new-key
    3q2+7wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=      the first key seals; all of them open

Rules that this file guards:
- A value is sealed by AES-256-GCM; farm, project, name and key are bound into the seal, so that no record can be put in the
  place of another.
- A key's id is a digest of it, so that a record names its key, and nobody can name one key and mean another.
- No error, and no text of an object, tells a key or a value.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from dataclasses import dataclass, field

from dtf_lightning.errors import DtfError, SettingsError

KEY_BYTES = 32
_NONCE = 12
_ID = 16
"""Letters of a key's id."""


class WrongKey(DtfError):
    """A sealed value that the keys at hand do not open. Its text says which key it wants."""


@dataclass(frozen=True, kw_only=True)
class SealingKey:
    """A key of the secrets' store."""

    id: str
    material: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """A sealed value."""

    text: str
    """Nonce and ciphertext, as base64."""
    key: str
    """Id of the key that opens it."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """Whose a secret is: what is bound into its seal."""

    farm: str
    project: str
    name: str


class Ring:
    """Keys, of which the first one seals. `place`: where they are from, for errors."""

    def __init__(self, keys: tuple[SealingKey, ...], place: str) -> None:
        assert keys
        self.keys = keys
        self.place = place

    @property
    def ids(self) -> tuple[str, ...]:
        """Of its keys, that of the one that seals first."""
        return tuple(key.id for key in self.keys)

    def seal(self, value: str, owner: Owner) -> Sealed:
        """Seal a value with the first key."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        key, nonce = self.keys[0], os.urandom(_NONCE)
        data = AESGCM(key.material).encrypt(nonce, value.encode(), _bound(owner, key.id))
        return Sealed(text=base64.b64encode(nonce + data).decode(), key=key.id)

    def open(self, sealed: Sealed, owner: Owner) -> str:
        """Return the value. Raises `WrongKey` where no key of this ring is the one, or the record is not what was sealed."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        key = next((one for one in self.keys if one.id == sealed.key), None)
        what = f"the secret {owner.name} of the project {owner.project}"
        if key is None:
            raise WrongKey(
                f"{what} is sealed with the key {sealed.key}, and {self.place} has {', '.join(self.ids)}: put that key back "
                "there, or set the secret anew"
            )
        try:
            data = base64.b64decode(sealed.text, validate=True)
            return AESGCM(key.material).decrypt(data[:_NONCE], data[_NONCE:], _bound(owner, key.id)).decode()
        except (InvalidTag, ValueError):
            pass  # raised below: an error's context must not hold what could not be read
        raise WrongKey(
            f"{what} is not what the key {sealed.key} has sealed: its record was changed; set the secret anew"
        )


def new_key() -> str:
    """Return a new key, as a line of a file of keys."""
    return base64.b64encode(os.urandom(KEY_BYTES)).decode()


def read_ring(text: str, place: str) -> Ring:
    """Return the keys of a text: one a line, or between commas; `#` begins a comment. Raises `SettingsError`, without the text."""
    words = [word for line in text.splitlines() for word in re.split(r"[\s,]+", line.partition("#")[0]) if word]
    keys = tuple(_key(word, number, place) for number, word in enumerate(words, 1))
    if not keys:
        raise SettingsError(f"{place} has no key: `dtf farm secret new-key FILE` makes a file with one")
    return Ring(tuple(dict.fromkeys(keys)), place)


def _key(word: str, number: int, place: str) -> SealingKey:
    material = b""
    try:
        material = base64.b64decode(word, validate=True)
    except ValueError:
        pass
    if len(material) != KEY_BYTES:
        raise SettingsError(
            f"{place}: number {number} is no key of the secrets' store: expected {KEY_BYTES} bytes as base64, such as "
            "`dtf farm secret new-key` makes"
        )
    told = hashlib.sha256(b"dtf farm: id of a key of the secrets' store\0" + material).hexdigest()
    return SealingKey(id=told[:_ID], material=material)


def _bound(owner: Owner, key: str) -> bytes:
    return json.dumps(["dtf farm secret", owner.farm, owner.project, owner.name, key]).encode()
