"""The result of a job, from those of its subtasks: read where they lie, merged by its rule."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from dtf_lightning.errors import DtfError
from dtf_lightning.farm.calls.returned import VALUE_JSON, read_told
from dtf_lightning.farm.orchestrate.merging import Part, UnlikeResults, merge
from dtf_lightning.farm.orchestrate.progress import COMPLETED
from dtf_lightning.farm.record.orchestrations.values import OrchestrationRecord
from dtf_lightning.farm.server.orchestrations.models import MERGE, request_of, rule_of, subtask_id
from dtf_lightning.farm.server.orchestrations.subtasks import Subtask
from dtf_lightning.farm.server.tasks import Tasks

MAX_RESULT = 32 * 1024 * 1024
"""Bytes of what the subtasks of a job gave, together."""
AT_ONCE = 50
"""Results that are read together."""
KEPT = 20
"""Results of jobs that have ended, in memory."""


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What a job gave."""

    result: Any = None
    partial: bool = False
    """Whether some of it is missing."""
    missing: tuple[str, ...] = ()
    """Names of shares that gave nothing."""
    error: str = ""
    """Why there is no result; "": there is one, or nothing has completed."""


class Merging:
    """Runs on the coordinator's event loop; what is read is read in threads."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._kept: OrderedDict[str, Merged] = OrderedDict()

    async def of(self, job: str, record: OrchestrationRecord, found: list[Subtask]) -> Merged:
        """Return the result of a job as far as it is there. Raises what etcd raises, and `ResultsBusy`."""
        if record.ended and (kept := self._kept.get(job)) is not None:
            return kept
        told = await self._merged(job, record, found)
        if record.ended:
            self._kept[job] = told
            if len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return told

    async def _merged(self, job: str, record: OrchestrationRecord, found: list[Subtask]) -> Merged:
        request = request_of(record)
        rule = rule_of(record, request)
        missing = tuple(one.share.name for one in found if one.counts and one.status != COMPLETED)
        try:
            if rule.how == "call":
                if record.ends.get(MERGE) != COMPLETED:
                    return Merged(partial=bool(missing), missing=missing)
                value = await self._value(subtask_id(job, MERGE), f"{MERGE} of {record.name}", is_call=True)
                return Merged(result=value, partial=bool(missing), missing=missing)
            parts = await self.parts(record, found)
            result = await asyncio.to_thread(merge, rule, parts) if parts else None
        except (UnlikeResults, CannotRead) as error:
            return Merged(partial=bool(missing), missing=missing, error=str(error))
        return Merged(result=result, partial=bool(missing), missing=missing)

    async def parts(self, record: OrchestrationRecord, found: list[Subtask]) -> list[Part]:
        """Return what the subtasks gave that have completed, in the order of their shares. Raises `CannotRead`."""
        command = bool(request_of(record).task_data.command)
        done = sorted(
            (one for one in found if one.counts and one.status == COMPLETED),
            key=lambda one: (one.share.begin, [int(part) for part in one.share.key.split(".")]),
        )
        parts: list[Part] = []
        size = 0
        for start in range(0, len(done), AT_ONCE):
            some = done[start : start + AT_ONCE]
            values = await asyncio.gather(*(self._value(one.task, one.share.name, is_call=not command) for one in some))
            size += sum(len(json.dumps(value)) for value in values)
            if size > MAX_RESULT:
                raise CannotRead(
                    f"the subtasks gave more than {MAX_RESULT} bytes together: let each leave a file (`artifacts`), and return what it "
                    "is called"
                )
            parts += [
                Part(name=one.share.name, weight=one.share.weight, value=value)
                for one, value in zip(some, values, strict=True)
            ]
        return parts

    async def _value(self, task: str, name: str, *, is_call: bool) -> Any:
        envelope = await self._tasks.envelope(task)
        if envelope is None:
            raise CannotRead(f"what the subtask {name!r} gave is kept no more")
        if not is_call:
            return {metric: float(value) for metric, value in envelope.metrics.items()}
        told = read_told(envelope.returned)
        if "value" in told:
            return told["value"]
        if told.get("artifact") != VALUE_JSON:
            raise CannotRead(f"the subtask {name!r} has completed and did not say what it returned")
        return await asyncio.to_thread(self._artifact, task, envelope.revision, name)

    def _artifact(self, task: str, revision: int, name: str) -> Any:
        store = self._tasks.files.artifacts
        stored = store.find(task, revision, VALUE_JSON)
        if stored is None:
            raise CannotRead(f"what the subtask {name!r} returned is kept no more")
        if stored.size > MAX_RESULT:
            raise CannotRead(f"the subtask {name!r} returned {stored.size} bytes, {MAX_RESULT} are allowed")
        return json.loads(b"".join(store.open(task, revision, stored)))


class CannotRead(DtfError):
    """What a subtask gave is not there."""
