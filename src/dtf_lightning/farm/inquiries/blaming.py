"""`inquire`: reruns of a failed task over the farm, each chosen by what it tells, until a cause is sure or the budget is spent."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol
from urllib.parse import quote

from dtf_lightning.farm.client import Client
from dtf_lightning.farm.inquiries.case import Case, Ran, Step
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.verdicts.blame import Cause, Rerun

_OWN_END = ("failed", "timeout")
_TAKES = ("online", "busy")


class Runs(Protocol):
    """What makes reruns."""

    def takers(self) -> set[str]:
        """Names of the workers that take tasks now."""

    def run(self, wanted: Rerun, *, recorded_variables: bool = False) -> Ran:
        """Make one and wait for its end. `recorded_variables`: with those of the base."""


@dataclass(frozen=True, kw_only=True)
class Inquiry:
    """How it ended."""

    case: Case
    variables: bool | None = None
    """Of a changed environment: whether it is the task's variables that are to blame; `None`: nobody has looked."""


def inquire(case: Case, runs: Runs, budget: int, told: Callable[[Case], object] = lambda _: None) -> Inquiry:
    """Make reruns. `told` hears of the case after each. Raises what `runs` raises."""
    while True:
        takers, left = runs.takers(), budget - len(case.steps)
        others = takers - {case.worker}
        wanted = case.next(here=case.worker in takers, elsewhere=bool(others), left=left)
        if wanted is None:
            break
        case = case.after(wanted, runs.run(wanted))
        told(case)
    if case.blame.cause is not None:
        pass
    elif not others:
        case = case.noting("there is no other worker: worker and environment cannot be told apart")
    elif case.worker not in takers:
        case = case.noting(f"{case.worker} takes no tasks now: it cannot be told from a flake")
    changed = case.base.changed_variables if case.base is not None else ()
    if case.blame.cause is not Cause.ENVIRONMENT or not changed or left <= 0:
        return Inquiry(case=case)
    wanted = Rerun(on_base=False, elsewhere=bool(others))
    ran = runs.run(wanted, recorded_variables=True)
    case = replace(case, steps=(*case.steps, Step(rerun=wanted, ran=ran, recorded_variables=True)))
    told(case)
    return Inquiry(case=case, variables=None if ran.failed is None else not ran.failed)


class FarmRuns:
    """Reruns of a task on a farm.

    Args:
        source: digest of the base's files, where the base is no task.
        patience: seconds for one rerun, its waiting for a worker included.
    """

    def __init__(self, farm: Client, task: str, case: Case, *, source: str = "", patience: float) -> None:
        self._farm = farm
        self._task = task
        self._case = case
        self._source = source
        self._patience = patience

    def takers(self) -> set[str]:
        """See `Runs`."""
        return {
            str(one["worker_id"])
            for one in self._farm.workers()
            if one["status"] in _TAKES and not one["metadata"]["cordoned"]
        }

    def run(self, wanted: Rerun, *, recorded_variables: bool = False) -> Ran:
        """See `Runs`. Ctrl-C cancels it."""
        base = self._case.base
        rerun = new_task_id(time.time())
        avoid = {self._case.worker} if wanted.elsewhere else self.takers() - {self._case.worker}
        body: dict[str, Any] = {"task_id": rerun, "avoid": sorted(avoid)}
        if wanted.on_base and base is not None:
            body |= {"code_of": base.task} if base.task else {"source": self._source}
        if recorded_variables and base is not None:
            body["variables_of"] = base.task
        self._farm.connection.ask("POST", f"/api/tasks/{quote(self._task, safe='')}/rerun", body)
        try:
            ended = self._farm.wait(rerun, self._patience)
        except TimeoutError as error:
            self._farm.cancel(rerun, "the inquiry waits no longer")
            return Ran(worker="", failed=None, reason=str(error), task=rerun)
        except KeyboardInterrupt:
            self._farm.cancel(rerun, "Ctrl-C")
            raise
        failed: bool | None = None
        if ended.status == "completed":
            failed = False
        elif (ended.raw.get("results") or {}).get("kind") in _OWN_END:
            failed = True
        return Ran(worker=str(ended.raw.get("worker_id") or ""), failed=failed, reason=ended.reason, task=rerun)
