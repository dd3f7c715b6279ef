"""Gangs on a coordinator: what the record shows of their members, and what follows from that. Pure.

Data flow: the leader assigns all workers in one attempt -> the first member's worker picks where they meet -> `Meeting` in the
record -> every member's worker is told to run -> each member's end is recorded (`MemberRecord`) -> at the first bad end the
others are told to end -> when all have ended the leader records the attempt's end, which deletes all of this.
"""

from __future__ import annotations

from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Mirror
from dtf_lightning.farm.record.values import Attempt, Meeting, MemberRecord, TaskSpecification
from dtf_lightning.farm.record.writes import RecordResult, RecordRetry
from dtf_lightning.farm.rules.gangs import Member, first_to_fail, together
from dtf_lightning.farm.server.envelopes import bounded, end_of_attempt


def members_that_ended(mirror: Mirror, task: str, attempt: Attempt, revision: int) -> list[Member]:
    """Return the members of an attempt that have ended, by rank."""
    found = []
    for rank, worker in enumerate(attempt.workers):
        held = mirror.get(Kind.MEMBER, task, str(rank))
        if held is not None and isinstance(held.value, MemberRecord) and held.value.revision == revision:
            found.append(Member(rank=rank, worker=worker, order=held.mod_revision, outcome=held.value.outcome))
    return found


def end_of_gang(
    mirror: Mirror, task: str, specification: TaskSpecification, attempt: Attempt, revision: int
) -> RecordResult | RecordRetry | None:
    """Return the write that follows from the end of a gang's attempt; `None` while not all of its members have ended."""
    ended = members_that_ended(mirror, task, attempt, revision)
    if len(ended) < len(attempt.workers):
        return None
    told, decisive = together(ended)
    return end_of_attempt(task, specification, attempt, revision, bounded(told), decisive.worker)


def meeting_of(mirror: Mirror, task: str, revision: int) -> Meeting | None:
    """Return where the members of an attempt meet, once that is known."""
    held = mirror.get(Kind.MEETING, task)
    if held is None or not isinstance(held.value, Meeting) or held.value.revision != revision:
        return None
    return held.value


def why_called_off(ended: list[Member]) -> str:
    """Say why the members that have not ended must; "" while they need not."""
    failed = first_to_fail(ended)
    return "" if failed is None else f"member {failed.rank} of its gang ended as {failed.outcome.kind.value}"


def has_ended_on(mirror: Mirror, task: str, attempt: Attempt, revision: int, worker: str) -> bool:
    """Whether the member on this worker has ended, and the record knows how: nothing is lost with that worker."""
    return any(member.worker == worker for member in members_that_ended(mirror, task, attempt, revision))
