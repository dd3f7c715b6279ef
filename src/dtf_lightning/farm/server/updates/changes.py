"""From changes of the record to updates on channels.

Rules that this file guards:
- An update is made of one change and of what came before it in the watch, not of what the mirror shows by then: every
  coordinator makes the same ones, with the same sequences.
- The exception is `running`: no record says it, and only the coordinator that a worker is connected to hears it. It bears
  the sequence of the moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Change
from dtf_lightning.farm.record.values import Attempt, Envelope, TaskSpecification
from dtf_lightning.farm.rules.updates import Hub, Update
from dtf_lightning.farm.server import models
from dtf_lightning.farm.server.pool import LiveTask, Pool

TASKS, ORCHESTRATED, CLUSTER, LEADERSHIP = CHANNELS = (
    "task_updates",
    "orchestrated_task_updates",
    "cluster_status",
    "leadership_updates",
)
FILTERS: dict[str, tuple[str, ...]] = {
    TASKS: ("task_id", "status", "worker_id", "project", "plan", "name"),
    ORCHESTRATED: ("task_id", "status", "project", "name"),
    CLUSTER: ("type", "node_id"),
    LEADERSHIP: ("new_leader_id", "previous_leader_id"),
}
"""Channel -> what its updates can be filtered by."""
KEPT = 10_000
"""Updates of each channel: at 500 tasks a second those of seven seconds, and a few MB."""


@dataclass(frozen=True, slots=True)
class TaskUpdate:
    """A task is at something else."""

    task: str
    status: str
    at: float
    """Seconds since the epoch."""
    specification: TaskSpecification | None = None
    attempt: int = 0
    worker: str = ""
    result: Envelope | None = None
    """Of a task that is done."""


@dataclass(frozen=True, slots=True)
class Message:
    """Anything else, as it is told."""

    body: dict[str, Any]


Told = TaskUpdate | Message


class Updates:
    """Runs on the coordinator's event loop.

    Args:
        now: returns seconds since the epoch.
    """

    def __init__(self, pool: Pool, now: Callable[[], float]) -> None:
        self.hub: Hub[Told] = Hub(CHANNELS, KEPT)
        self.listeners: list[Callable[[], None]] = []
        """Called when something was published."""
        self._now = now
        self._tasks: dict[str, TaskSpecification] = {}
        """Those that are not done, as far as the watch's changes were told."""
        self._reading = False
        pool.listeners.append(self.changed)
        pool.started_listeners.append(self.started)

    @contextmanager
    def reading(self) -> Iterator[Callable[[int], None]]:
        """Inside, all is read anew: what happened since the last change is not known. Call what is given with the revision."""
        self._reading = True
        try:
            yield self.hub.restart
        finally:
            self._reading = False
            self._tell()

    def taken_in(self, revision: int) -> None:
        """All changes up to a revision were told."""
        self.hub.advance(revision)
        self._tell()

    def changed(self, change: Change) -> None:
        """The mirror shows a change."""
        if change.kind is Kind.TASK:
            self._task_changed(change)
        elif self._reading or change.after is None:
            return
        elif change.kind is Kind.ATTEMPT and isinstance(attempt := change.after.value, Attempt):
            told = self._tasks.get(change.names[0])
            worker = attempt.workers[0] if attempt.workers else ""
            before = change.before.value if change.before is not None else None
            if attempt.born and isinstance(before, Attempt) and before.born:
                return  # of an array, which goes on being born
            status = "assigned" if worker else "running" if attempt.born else "pending"
            self._publish(change, TaskUpdate(change.names[0], status, self._now(), told, attempt.number, worker))
        elif change.kind is Kind.DONE and isinstance(result := change.after.value, Envelope):
            worker, at = result.workers[0] if result.workers else "", result.ended or self._now()
            status = result.outcome.value
            self._publish(change, TaskUpdate(change.names[0], status, at, None, result.attempt, worker, result))

    def started(self, live: LiveTask) -> None:
        """A worker that is connected here says that an attempt's process runs."""
        update = TaskUpdate(
            live.task,
            "running",
            live.started or self._now(),
            live.specification,
            live.attempt.number,
            live.attempt.workers[0],
        )
        self.hub.publish(TASKS, Update(self.hub.sequence, _facts(update), update))
        self._tell()

    def publish(self, channel: str, sequence: int, body: dict[str, Any], **facts: str) -> None:
        """Publish a message, unless all is read anew just now."""
        if not self._reading:
            self.hub.publish(channel, Update(sequence, {"type": body["type"], **facts}, Message(body)))

    def _task_changed(self, change: Change) -> None:
        task = change.names[0]
        if change.after is None:
            self._tasks.pop(task, None)
            return
        told = change.after.value
        assert isinstance(told, TaskSpecification)
        new = task not in self._tasks
        self._tasks[task] = told
        if new and not self._reading:
            status = "waiting" if told.after or told.after_any else "pending"
            self._publish(change, TaskUpdate(task, status, told.submitted, told))

    def _publish(self, change: Change, update: TaskUpdate) -> None:
        self.hub.publish(TASKS, Update(change.revision, _facts(update), update))

    def _tell(self) -> None:
        for listener in self.listeners:
            listener()


def _facts(update: TaskUpdate) -> dict[str, str]:
    told = update.result or update.specification
    return {
        "task_id": update.task,
        "status": update.status,
        "worker_id": update.worker,
        "project": told.project if told else "",
        "plan": told.plan if told else "",
        "name": told.name if told else "",
    }


def message_of(update: Update[Told], *, details: bool) -> dict[str, Any]:
    """Return an update as it is told. `details`: with the whole task, where it is done."""
    if isinstance(update.body, Message):
        return {**update.body.body, "sequence": update.sequence}
    told, facts = update.body, update.facts
    message: dict[str, Any] = {
        "type": "task_update",
        "task_id": told.task,
        "status": told.status,
        "worker_id": told.worker or None,
        "timestamp": models.when(told.at),
        "sequence": update.sequence,
        "name": facts["name"],
        "project": facts["project"],
        "plan": facts["plan"],
        "attempt": told.attempt,
    }
    if told.result is not None:
        message["reason"] = told.result.reason
        if details:
            message["task"] = models.whole_task(told.task, told.result)
    return message
