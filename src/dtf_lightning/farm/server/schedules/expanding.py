"""From a plan's text to the tasks that are submitted: for clients that send a plan as it is written, and for schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.plans.plan import Plan
from dtf_lightning.farm.plans.reading import parse_plan
from dtf_lightning.farm.plans.requests import jobs_of, refuse_local, requests_of
from dtf_lightning.farm.record.task_id import array_id, derived_task_id
from dtf_lightning.farm.server.models import TaskRequest
from dtf_lightning.farm.server.orchestrations.models import OrchestrateRequest


@dataclass(frozen=True, kw_only=True)
class SentPlan:
    """A plan as a client has sent it."""

    text: str
    """Its YAML."""
    source: str = ""
    """Digest of the archive that each task unpacks; "": none."""
    folder: str = ""
    """Where in it the plan was started."""
    inputs: Mapping[str, str] = field(default_factory=dict)
    """Path that the plan names -> reference by which the farm has it."""
    name: str = ""
    """Of the plan, where it does not say so itself."""

    def expand(self, plan_id: str) -> tuple[Plan, list[TaskRequest]]:
        """Return the plan and its tasks, a dependency before what needs it, with ids that are made from the plan's.

        Raises `SettingsError` for a plan that cannot work, `ValueError` for a task that cannot.
        """
        plan = self._plan()
        fields = requests_of(
            plan, plan_id, _new_ids(plan_id), source=self.source, folder=self.folder, send=self._reference
        )
        return plan, [TaskRequest.model_validate(one) for one in fields]

    def jobs(self, plan_id: str) -> list[OrchestrateRequest]:
        """Return the plan's jobs that are split over devices, with ids that are made from the plan's. Raises as `expand`."""
        plan, ids = self._plan(), _new_ids(plan_id)
        fields = jobs_of(plan, ids, source=self.source, folder=self.folder, send=self._reference)
        return [OrchestrateRequest.model_validate(one) for one in fields]

    def _plan(self) -> Plan:
        if self.folder.startswith("/") or ".." in self.folder.split("/"):
            raise SettingsError(f"the folder {self.folder!r} must lie in the task's own workspace")
        return parse_plan(self.text, "the plan", name=self.name)

    def _reference(self, path: str) -> str:
        return self.inputs[path] if path in self.inputs else refuse_local(path)


def _new_ids(plan_id: str) -> Callable[[bool], str]:
    ids = _ids(plan_id)
    return lambda is_array: array_id(next(ids)) if is_array else next(ids)


def _ids(plan_id: str) -> Iterator[str]:
    number = 0
    while True:
        yield derived_task_id(plan_id, number)
        number += 1
