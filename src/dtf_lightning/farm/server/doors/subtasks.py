"""What a task submits by its own token: tasks of its plan, which can do no more than itself."""

from __future__ import annotations

from collections.abc import Sequence

from dtf_lightning.farm.record.values import TaskSpecification
from dtf_lightning.farm.security.identity import Identity, Unauthorised
from dtf_lightning.farm.security.ownership import refuse_powers, refuse_subtask
from dtf_lightning.farm.security.permissions import Role
from dtf_lightning.farm.server.models import TaskRequest
from dtf_lightning.farm.server.pool import Pool


def as_submitted(identity: Identity, requests: Sequence[TaskRequest], pool: Pool) -> tuple[TaskRequest, ...]:
    """Return the tasks as they are to be accepted: those that a task submits are of the plan of its id.

    Raises `Forbidden` for another plan, and for powers that the task itself does not have.
    """
    if identity.role is not Role.TASK:
        return tuple(requests)
    live = pool.live(identity.subject)
    if live is None:
        raise Unauthorised("the task for which this token was made has ended")
    return tuple(_subtask(identity, request, live.specification) for request in requests)


def _subtask(identity: Identity, request: TaskRequest, of: TaskSpecification) -> TaskRequest:
    if request.plan:
        refuse_subtask(identity, f"the plan {request.plan}", request.plan)
    refuse_powers(identity, of.secrets, request.secrets, request.permissions)
    return request.model_copy(update={"plan": identity.subject})
