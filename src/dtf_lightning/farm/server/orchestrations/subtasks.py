"""What is known of a job's subtasks from the record and the latest results: no truth is kept here. Pure but for the pool."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dtf_lightning.farm.orchestrate.progress import JobStatus, percentage, status_of
from dtf_lightning.farm.orchestrate.splitting import Share, tree
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.orchestrations.values import OrchestrationRecord
from dtf_lightning.farm.server.orchestrations.models import MERGE, subtask_id
from dtf_lightning.farm.server.pool import Pool


@dataclass(frozen=True, kw_only=True, slots=True)
class Subtask:
    """One of a job's tasks."""

    task: str
    share: Share
    status: str
    counts: bool = True
    """Whether its share is not cut anew."""
    worker: str = ""


def subtasks(pool: Pool, job: str, record: OrchestrationRecord) -> list[Subtask]:
    """Return a job's subtasks with what they are at, as far as it is known here."""
    found: list[Subtask] = []
    for share, counts in tree(record.shares, record.ends, split_anew=record.split_anew):
        task = subtask_id(job, share.key)
        status, worker = look(pool, task, record.ends.get(share.key, ""))
        found.append(Subtask(task=task, share=share, status=status, counts=counts, worker=worker))
    return found


def look(pool: Pool, task: str, noted: str = "") -> tuple[str, str]:
    """Return what a task is at, and its worker. One that nobody here knows is being submitted, or its end is being noted."""
    recent = pool.recent(task)
    if noted or recent is not None:
        worker = recent.workers[0] if recent is not None and recent.workers else ""
        return noted or (recent.outcome.value if recent is not None else ""), worker
    live = pool.live(task)
    if live is None:
        return "pending", ""
    return pool.status(live), live.attempt.workers[0] if live.attempt.workers else ""


def merge_status(pool: Pool, job: str, record: OrchestrationRecord) -> str:
    """Return what the subtask is at that merges by a function of one's own."""
    return look(pool, subtask_id(job, MERGE), record.ends.get(MERGE, ""))[0]


def progress(record: OrchestrationRecord, found: list[Subtask]) -> tuple[JobStatus, int]:
    """Return what a job is at, and how much of it has ended, in percent: 100 only when all has, the merging too."""
    counting = [one for one in found if one.counts]
    done = percentage((one.share, one.status) for one in counting)
    if record.ended:
        return JobStatus(record.status), 100
    status = status_of(
        (one.status for one in counting), cancelled=bool(record.cancelled), begun=len(counting) < len(found)
    )
    if status in (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED):
        return JobStatus.IN_PROGRESS, min(done, 99)  # the leader has not noted it yet, or it is being merged
    return status, done


def ids_of(job: str, record: OrchestrationRecord) -> Iterator[str]:
    """Yield the ids of all of a job's tasks."""
    for share, _ in tree(record.shares, record.ends, split_anew=record.split_anew):
        yield subtask_id(job, share.key)
    yield subtask_id(job, MERGE)


def jobs(pool: Pool) -> Iterator[tuple[str, OrchestrationRecord, int]]:
    """Yield all jobs that the record holds, the oldest first, each with its mod revision."""
    for (name,), held in sorted(pool.mirror.all(Kind.ORCHESTRATION).items()):
        assert isinstance(held.value, OrchestrationRecord)
        yield name, held.value, held.mod_revision


def job_of(pool: Pool, name: str) -> OrchestrationRecord | None:
    """Return a job, if the record holds it."""
    held = pool.mirror.get(Kind.ORCHESTRATION, name)
    if held is None:
        return None
    assert isinstance(held.value, OrchestrationRecord)
    return held.value
