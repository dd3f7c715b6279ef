"""Jobs that are split over devices as the API shows them, by the names of the requirements. Pure but for the pool."""

from __future__ import annotations

from typing import Any

from dtf_lightning.farm.record.orchestrations.values import OrchestrationRecord
from dtf_lightning.farm.server.models import when
from dtf_lightning.farm.server.orchestrations.models import MERGE, request_of, rule_of, subtask_id
from dtf_lightning.farm.server.orchestrations.results import Merged
from dtf_lightning.farm.server.orchestrations.subtasks import Subtask, merge_status, progress, subtasks
from dtf_lightning.farm.server.pool import Pool

LISTED = 100
"""Subtasks that an update names; of a job with more, those that are not done, and of these no more."""


def summary(pool: Pool, job: str, record: OrchestrationRecord, found: list[Subtask] | None = None) -> dict[str, Any]:
    """Return a job without its subtasks and its result."""
    found = subtasks(pool, job, record) if found is None else found
    status, percent = progress(record, found)
    counts: dict[str, int] = {}
    for one in found:
        counts[one.status] = counts.get(one.status, 0) + 1
    return {
        "task_id": job,
        "name": record.name,
        "status": status.value,
        "completion_percentage": percent,
        "strategy": record.strategy.value,
        "reason": record.reason,
        "project": record.project,
        "plan": record.plan or job,
        "create_time": when(record.submitted),
        "end_time": when(record.ended or None),
        "num_subtasks": len(found),
        "counts": counts,
        "error": record.error or (record.cancel_reason if record.cancelled else "") or None,
    }


def whole(pool: Pool, job: str, record: OrchestrationRecord, found: list[Subtask], merged: Merged) -> dict[str, Any]:
    """Return a job with its subtasks and its result. `partial`: some of it is missing, which `missing` names."""
    request = request_of(record)
    told = summary(pool, job, record, found)
    shown = [_subtask(one) for one in found]
    rule = rule_of(record, request)
    if rule.how == "call":
        shown.append({"subtask_id": subtask_id(job, MERGE), "name": MERGE, "status": merge_status(pool, job, record)})
    return {
        **told,
        "type": request.task_data.type,
        "priority": record.priority,
        "subtask_timeout": record.timeout,
        "retry_limit": record.retries,
        "merge": rule.how,
        "subtasks": shown,
        "result": merged.result,
        "partial": merged.partial,
        "missing": list(merged.missing),
        "merge_error": merged.error or None,
    }


def update(pool: Pool, job: str, record: OrchestrationRecord) -> dict[str, Any]:
    """Return the notification that something of a job has changed, but for its time."""
    found = subtasks(pool, job, record)
    status, percent = progress(record, found)
    named = found if len(found) <= LISTED else [one for one in found if one.status in ("assigned", "running")][:LISTED]
    return {
        "type": "orchestrated_task_update",
        "task_id": job,
        "status": status.value,
        "completion_percentage": percent,
        "subtasks": [{"subtask_id": one.task, "status": one.status} for one in named],
        "num_subtasks": len(found),
        "name": record.name,
        "project": record.project,
        "plan": record.plan or job,
        "error": record.error or None,
    }


def _subtask(one: Subtask) -> dict[str, Any]:
    share: dict[str, Any] = {"begin": one.share.begin, "end": one.share.end} if one.share.end else {}
    for name in ("function", "model", "label"):
        if value := getattr(one.share, name):
            share[name] = value
    return {
        "subtask_id": one.task,
        "name": one.share.name,
        "status": one.status,
        "worker_id": one.worker or None,
        "share": share,
        "split_anew": not one.counts,
    }
