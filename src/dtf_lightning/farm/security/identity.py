"""Who asks: what a request has shown itself to be, for everything behind the door. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dtf_lightning.errors import DtfError
from dtf_lightning.farm.security.permissions import Role

IN_SCOPE = "dtf.identity"
"""Where an ASGI scope holds it."""


class Unauthorised(DtfError):
    """Nobody knows who asks. Its text says why."""


class Forbidden(DtfError):
    """Who asks may not. Its text says what it would need."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Somebody whose token is good."""

    subject: str
    role: Role
    token: str = ""
    """Of a signed token its id; "": the farm's own token."""
    projects: frozenset[str] = frozenset()
    """To which it is limited; empty: to none."""
    expires: float | None = None
    """Seconds since the epoch; `None`: never."""
    family: str = ""
    """Of a worker that has joined: what all its tokens have in common; of an attempt's command its task."""
    number: int = 0
    """Of a token that is good for the next one: which of its family's it is; of an attempt's command its revision."""

    @property
    def names(self) -> tuple[str, ...]:
        """What can be revoked of it."""
        return tuple(name for name in (self.token, self.family) if name)

    @property
    def worker(self) -> str | None:
        """The one worker in whose name it speaks; `None`: any."""
        return self.subject if self.role is Role.WORKER else None

    def shown(self) -> dict[str, str]:
        """As the audit file has it."""
        return {"sub": self.subject, "role": self.role.value} | ({"jti": self.token} if self.token else {})


OWNER = Identity(subject="farm", role=Role.ADMIN)
"""Who has the farm's own token."""


def identity_of(scope: Mapping[str, Any]) -> Identity:
    """Return who asks. Raises `Unauthorised` where nobody has looked."""
    found = scope.get(IN_SCOPE)
    if not isinstance(found, Identity):
        raise Unauthorised("nobody has looked at who asks this")
    return found
