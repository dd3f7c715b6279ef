"""Signed tokens: JSON Web Tokens (RFC 7519), made and checked. Pure: time and keys are given.

Rules that this file guards:
- One algorithm, EdDSA with Ed25519: neither `none` nor one that takes a public key for a secret is ever looked at. Where a farm
  shares a secret with others (`security.jwt_secret`), HS256 is for that secret, by its `kid` or without one, and no other: the key
  decides the algorithm, never the token.
- What others have made is for the roles that a token can be made for, and no longer than the farm's own.
- A token says whose it is (`sub`), what for (`role`, `projects`), of which farm (`aud`), since and until when (`iat`, `exp`),
  which one it is (`jti`) and by which key (`kid`). One that lacks any of them is none.
- There is one text for a token: another spelling of the same signature is refused, so that a text can be remembered.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from dtf_lightning.farm.security.identity import Identity, Unauthorised
from dtf_lightning.farm.security.keys import LONGEST_LIFE, SharedSecret, SigningKey
from dtf_lightning.farm.security.permissions import GIVEN, Role

ALGORITHM = "EdDSA"
HMAC = "HS256"
MAX_LENGTH = 4096
_SHAPE = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_REQUIRED = ["sub", "role", "aud", "iat", "exp", "jti"]


def is_signed(text: str) -> bool:
    """Whether a text looks like a signed token, and not like a farm's own."""
    return text.count(".") == 2


def role_told(text: str) -> str:
    """Return the role that a signed token claims, unverified, for whoever holds it; "" for a text that is none."""
    try:
        body = text.split(".")[1]
        told = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))["role"]
    except (IndexError, ValueError, KeyError, TypeError):
        return ""
    return told if isinstance(told, str) else ""


def make_token(identity: Identity, key: SigningKey, *, farm: str, now: float) -> str:
    """Return a token for an identity, which must have an end and an id."""
    import jwt

    assert identity.expires is not None
    assert identity.token
    claims: dict[str, Any] = {
        "sub": identity.subject,
        "role": identity.role.value,
        "aud": farm,
        "iat": int(now),
        "exp": int(identity.expires),
        "jti": identity.token,
    }
    if identity.projects:
        claims["projects"] = sorted(identity.projects)
    if identity.family:
        claims |= {"family": identity.family, "number": identity.number}
    return jwt.encode(claims, key.private, ALGORITHM, {"kid": key.name})


def read_token(
    text: str, keys: Mapping[str, SigningKey], *, farm: str, now: float, shared: SharedSecret | None = None
) -> Identity:
    """Return whose a token is. Raises `Unauthorised` for one that is not good, with what is wrong with it.

    Args:
        keys: by their names.
        shared: the secret by which others make tokens.
    """
    import jwt

    if len(text) > MAX_LENGTH or not _SHAPE.fullmatch(text):
        raise Unauthorised("this is no token of a farm: its shape is wrong")
    try:
        _refuse_another_spelling(text)
        header = jwt.get_unverified_header(text)
    except (jwt.InvalidTokenError, ValueError, RecursionError) as error:
        raise Unauthorised(f"this is no token of a farm: {error}") from error
    of_others = shared is not None and header.get("kid", shared.name) == shared.name
    algorithm = HMAC if of_others else ALGORITHM
    if header.get("alg") != algorithm:
        raise Unauthorised(f"a farm's tokens are signed by {algorithm}, and no other algorithm is taken")
    key = keys.get(str(header.get("kid")))
    if key is None and not of_others:
        raise Unauthorised("the key that signed this token is not known here: it is another farm's, or no longer used")
    verifier = shared.secret if of_others and shared is not None else key.public if key is not None else b""
    try:
        claims = jwt.decode(
            text,
            verifier,
            [algorithm],
            {"require": _REQUIRED, "verify_exp": False, "verify_iat": False, "verify_nbf": False},
            audience=farm,
        )
        identity = _identity(claims)
    except jwt.InvalidAudienceError as error:
        raise Unauthorised("this token is for another farm") from error
    except (jwt.InvalidTokenError, ValueError, TypeError) as error:
        raise Unauthorised(f"this token was changed, or was never one: {error}") from error
    if of_others:
        identity = _of_others(identity, now)
    refuse_expired(identity, now)
    return identity


def _of_others(identity: Identity, now: float) -> Identity:
    """Return what somebody else has made as far as it is good. Raises `Unauthorised`."""
    if identity.role not in GIVEN:
        raise Unauthorised(f"a token of the role {identity.role.value} is made by the farm alone")
    if identity.expires is None or identity.expires > now + LONGEST_LIFE:
        raise Unauthorised(
            f"a token can be good for {LONGEST_LIFE / 86400:.0f} days at most, and this one is for longer"
        )
    return replace(identity, family="", number=0)


def refuse_expired(identity: Identity, now: float) -> None:
    """Raise `Unauthorised` for an identity whose time is over."""
    if identity.expires is not None and now >= identity.expires:
        ended = datetime.fromtimestamp(identity.expires, UTC).strftime("%Y-%m-%d %H:%M:%S")
        raise Unauthorised(f"this token's time is over since {ended} UTC: {_remedy(identity)}")


def _remedy(identity: Identity) -> str:
    if identity.role in (Role.JOIN, Role.REFRESH):
        return "`dtf farm token create --role worker --uses 1` makes a new one for a worker to join with"
    return f"`dtf farm token create --role {identity.role.value}` makes a new one"


def _refuse_another_spelling(text: str) -> None:
    """The last character of a signature has bits that decoding passes over."""
    signature = text.rpartition(".")[2]
    whole = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    if base64.urlsafe_b64encode(whole).decode().rstrip("=") != signature:
        raise ValueError("its signature is spelled in another way than a farm spells it")


def _identity(claims: Mapping[str, Any]) -> Identity:
    """Raises `ValueError` or `TypeError` for claims that a farm does not make."""
    expires, projects, number = claims["exp"], claims.get("projects", []), claims.get("number", 0)
    if type(expires) is not int or type(number) is not int:
        raise TypeError("a number is none")
    if not isinstance(projects, list) or not all(isinstance(one, str) and one for one in projects):
        raise TypeError("its projects are no list of names")
    told = Identity(
        subject=_word(claims["sub"]), role=Role(claims["role"]), token=_word(claims["jti"]), expires=float(expires)
    )
    family = claims.get("family")
    if family is not None:
        told = replace(told, family=_word(family), number=number)
    return replace(told, projects=frozenset(projects))


def _word(told: object) -> str:
    if not isinstance(told, str) or not told:
        raise TypeError("a name is none")
    return told
