"""Values of the records about tokens. None of them holds a token, nor a key that is not sealed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SigningKeyRecord:
    """A key that signs tokens, by its `kid`."""

    sealed: str
    """Its private half, by `security.keys.Sealer`."""
    created: float


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRecord:
    """A token that was made for somebody, by its id; for lists."""

    subject: str
    role: str
    projects: tuple[str, ...] = ()
    created: float
    expires: float
    by: str = ""
    """Who has made it."""
    uses: int | None = None
    """Of a token to join with: how many workers can still join; `None`: it is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RevokedRecord:
    """A token, or a worker's whole family of them, that is good no more, by its id."""

    at: float
    until: float
    """When it would have expired anyway."""
    reason: str = ""
    by: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyRecord:
    """The tokens of a worker that has joined, by the worker's name."""

    id: str
    number: int
    """Of the one token that is good for the next ones."""
    nonce: str
    """Digest of what the worker chose when it asked for these: who asks again with it has lost the answer."""
    joined: float
    expires: float
    """When the token for the next ones expires."""
    by: str = ""
    """Id of the token that it joined with."""
