"""`OrchestrationUpdates`: tells who subscribed what changes in jobs, and knows whose subtask a task is.

A notification tells the whole state of a job, so that the latest is all that one needs; its sequence is that of the change.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Change
from dtf_lightning.farm.record.orchestrations.values import OrchestrationRecord
from dtf_lightning.farm.server.models import when
from dtf_lightning.farm.server.orchestrations.showing import LISTED, update
from dtf_lightning.farm.server.orchestrations.subtasks import ids_of, job_of
from dtf_lightning.farm.server.pool import LiveTask, Pool
from dtf_lightning.farm.server.updates.changes import ORCHESTRATED, Updates


class OrchestrationUpdates:
    """Runs on the coordinator's event loop.

    Args:
        now: returns seconds since the epoch.
    """

    def __init__(self, pool: Pool, updates: Updates, now: Callable[[], float]) -> None:
        self._pool = pool
        self._updates = updates
        self._now = now
        self._jobs: dict[str, str] = {}
        """Task -> the job whose subtask it is."""
        self._ids: dict[str, tuple[str, ...]] = {}
        """Job -> its tasks."""
        self._told: dict[str, dict[str, Any]] = {}
        """Job that has not ended -> what was told of it last."""

    def listen(self) -> None:
        """Hear of changes from now on; the record has not been read yet."""
        self._pool.listeners.append(self._changed)
        self._pool.started_listeners.append(self._started)

    def job_of(self, task: str) -> str | None:
        """Return the job whose subtask this is."""
        return self._jobs.get(task)

    def _changed(self, change: Change) -> None:
        if change.kind is Kind.ORCHESTRATION:
            name = change.names[0]
            record = change.after.value if change.after is not None else None
            if not isinstance(record, OrchestrationRecord):
                self._forget(name)
                return
            self._know(name, record)
            self._tell(name, record, change.revision)
        elif change.kind in (Kind.TASK, Kind.ATTEMPT, Kind.DONE) and (name := self._jobs.get(change.names[0], "")):
            self._subtask_changed(name, change.revision)

    def _started(self, live: LiveTask) -> None:
        if name := self._jobs.get(live.task):
            self._subtask_changed(name, self._updates.hub.sequence)
            self._updates.taken_in(self._updates.hub.sequence)

    def _subtask_changed(self, name: str, revision: int) -> None:
        """Of a large job what the leader notes is enough: each notification looks at all of its subtasks."""
        record = job_of(self._pool, name)
        if record is not None and not record.ended and len(self._ids[name]) <= LISTED:
            self._tell(name, record, revision)

    def _know(self, name: str, record: OrchestrationRecord) -> None:
        self._forget(name)
        self._ids[name] = tuple(ids_of(name, record))
        self._jobs |= dict.fromkeys(self._ids[name], name)

    def _forget(self, name: str) -> None:
        for task in self._ids.pop(name, ()):
            self._jobs.pop(task, None)

    def _tell(self, name: str, record: OrchestrationRecord, revision: int) -> None:
        told = update(self._pool, name, record)
        if self._told.get(name) == told:
            return
        self._told[name] = told
        if record.ended:
            del self._told[name]
        body = {**told, "timestamp": when(self._now())}
        facts = {"task_id": name, "status": told["status"], "project": record.project, "name": record.name}
        self._updates.publish(ORCHESTRATED, revision, body, **facts)
