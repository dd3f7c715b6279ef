"""What a token that is limited to projects is not told in errors: idempotency keys are of the whole farm."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dtf_lightning.farm.security.identity import Identity
from dtf_lightning.farm.server.clients.keys import OtherRequest


@contextmanager
def without_others(identity: Identity) -> Iterator[None]:
    """Inside, something is submitted. What was submitted under the same key may be of a project that is not this token's."""
    try:
        yield
    except OtherRequest:
        if not identity.projects:
            raise
        raise OtherRequest(
            "another request was submitted under this key, perhaps of a project that this token is not for: choose another "
            "key, or ask for the same"
        ) from None
