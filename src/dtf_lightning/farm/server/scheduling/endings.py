"""Attempts that do not count any more and whose processes may still run: what they hold is taken until their workers say that
nothing of them is left.

Rules that this file guards:
- Whatever takes an attempt away from a worker that is there notes it under `endings/`, in the same write.
- A worker is struck off when it has said so, or when it is lost; with the last of them the note goes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dtf_lightning.errors import StoreUnavailable
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Mirror
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.values import Attempt, Ending, TaskSpecification
from dtf_lightning.farm.record.writes import Release
from dtf_lightning.farm.rules.needs import needed
from dtf_lightning.farm.rules.scheduling.door import ReadyTask
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.scheduling.projects import limits_of

TRIES = 10


def ending_of(specification: TaskSpecification, attempt: Attempt) -> Ending | None:
    """Return the note about an attempt that is taken from its workers; `None` for one that had none."""
    if not attempt.workers:
        return None
    needs = needed(specification.needs, specification.secrets)
    return Ending(
        workers=attempt.workers,
        need=needs[attempt.alternative if attempt.alternative < len(needs) else 0],
        project=specification.project,
        limits=specification.limits,
    )


def name_of(task: str, revision: str) -> str:
    """Return the name under which the scheduler knows what such an attempt holds; no task has it."""
    return f"{task} {revision}"


def as_placed(mirror: Mirror, task: str, revision: str, ending: Ending) -> ReadyTask:
    """Return what such an attempt holds, as the scheduler takes it."""
    asked = TaskSpecification(command=(), project=ending.project, limits=ending.limits)
    return ReadyTask(
        task=name_of(task, revision),
        project=ending.project,
        needs=(ending.need,),
        gang=len(ending.workers),
        limits=limits_of(mirror, asked),
    )


def release_of(mirror: Mirror, task: str, revision: str, *workers: str) -> Release | None:
    """Return the write that strikes workers off such a note; `None` where they do not stand there."""
    held = mirror.get(Kind.ENDING, task, revision)
    if held is None or not isinstance(held.value, Ending):
        return None
    left = tuple(worker for worker in held.value.workers if worker not in workers)
    if left == held.value.workers:
        return None
    return Release(task=task, revision=revision, left=replace(held.value, workers=left), seen=held.mod_revision)


def lost_ones(mirror: Mirror, task: str, revision: str) -> Release | None:
    """Return the write that strikes off the workers that the record does not know any more."""
    held = mirror.get(Kind.ENDING, task, revision)
    workers = held.value.workers if held is not None and isinstance(held.value, Ending) else ()
    return release_of(mirror, task, revision, *(one for one in workers if mirror.get(Kind.WORKER, one) is None))


def on_worker(mirror: Mirror, worker: str) -> Iterator[tuple[str, int]]:
    """Yield the attempts, by task and revision, of which a worker has not said that nothing is left."""
    for (task, revision), held in list(mirror.all(Kind.ENDING).items()):
        if isinstance(held.value, Ending) and worker in held.value.workers:
            yield task, int(revision)


async def release(pool: Pool, record: FarmRecord, worker: str, task: str, revision: int) -> None:
    """A worker has said that nothing of an attempt is left. Raises what etcd raises."""
    for _ in range(TRIES):
        write = release_of(pool.mirror, task, str(revision), worker)
        if write is None or await record.answer(write):
            return
        await pool.wait_for(task, lambda: pool.mirror.seen(Kind.ENDING, task, str(revision)) != write.seen, 1.0)  # noqa: B023
    raise StoreUnavailable(f"what is noted of the attempt {revision} at {task} changes all the time")
