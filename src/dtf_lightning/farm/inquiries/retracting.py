"""What is done about a sick worker: it gets no more tasks, and what failed there lately is run again elsewhere.

Rules that this file guards:
- It is cordoned first, so that what is run again does not come back to it.
- Whoever does so twice runs nothing twice: the retry of a task has an id that is made of the task's.
- Reruns of inquiries failed there for a purpose: they are not run again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from dtf_lightning.farm.client import Client
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.task_id import derived_task_id

MAX_RETRACTED = 1000
_RETRACTION = 0x5265_7472
"""What the ids of these retries are made with, beside the task's."""
_OWN_FAULT = ("failed", "timeout")
_OF_INQUIRIES = ("blame: ", "bisect: ")


@dataclass(frozen=True, kw_only=True)
class Retracted:
    """What became of it."""

    worker: str
    again: tuple[tuple[str, str], ...]
    """Task that failed there -> the one in its place."""
    left: tuple[tuple[str, str], ...]
    """Task that could not be run again -> why."""

    @property
    def sentence(self) -> str:
        """For people."""
        number = len(self.again)
        told = f"{self.worker} is cordoned; {number} task{'' if number == 1 else 's'} that failed there run again elsewhere"
        return told + (f", {len(self.left)} could not be submitted again" if self.left else "")


def retract(farm: Client, worker: str, since: float, also: Sequence[str] = ()) -> Retracted:
    """Cordon a worker, and run again what failed there.

    Args:
        since: seconds since the epoch: what ended before stays as it is.
        also: tasks that are run again whenever they ended.

    Raises `FarmRefused` where it may not be cordoned.
    """
    farm.change_worker(worker, "cordon")
    moment = datetime.fromtimestamp(since, UTC).isoformat()
    wanted = dict.fromkeys(also)
    for one in farm.results(worker_id=worker, outcome="failed", since=moment):
        told = one["metadata"]
        if told["kind"] in _OWN_FAULT and not str(told["name"] or "").startswith(_OF_INQUIRIES):
            wanted[str(one["task_id"])] = None
        if len(wanted) >= MAX_RETRACTED:
            break
    again, left = [], []
    for task in wanted:
        try:
            told = farm.connection.ask(
                "POST", f"/api/tasks/{quote(task, safe='')}/retry", retry_id=derived_task_id(task, _RETRACTION)
            )
        except FarmRefused as refusal:
            left.append((task, str(refusal)))
        else:
            again.append((task, str(told["task_id"])))
    return Retracted(worker=worker, again=tuple(again), left=tuple(left))
