"""What a token that is limited to projects may submit, and is not told in errors: idempotency keys are of the whole farm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from dtf_lightning.farm.security.identity import Identity
from dtf_lightning.farm.security.ownership import refuse_projects
from dtf_lightning.farm.server.clients.keys import OtherRequest


@contextmanager
def submitting(identity: Identity, projects: Iterable[str]) -> Iterator[None]:
    """Inside, tasks of these projects are submitted. What was submitted under the same key may be of one that is not told.

    Raises `Forbidden` for other projects than the token's.
    """
    refuse_projects(identity, projects)
    try:
        yield
    except OtherRequest:
        if not identity.projects:
            raise
        raise OtherRequest(
            "another request was submitted under this key, perhaps of a project that this token is not for: choose another "
            "key, or ask for the same"
        ) from None
