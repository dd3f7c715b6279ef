"""`Reuses`: which tasks ask for a result that is known for the same inputs, before they are placed. Pure; a leader's.

Data flow: such a task is ready -> it is held back, and history is asked (`history.known_results`) -> a result that is known ends
it (`Reuse`), or else the scheduler gets it as any other.

Rules that this file guards:
- A task is asked about once by a leader, and only before its first attempt: what was begun is brought to its end.
- Who tries a task again by hand wants it to run: a retry is not asked about.
- What cannot be told is not known: the task runs.
- Against a cancellation, or another leader, whoever writes first decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from dtf_lightning.etcd.store import Compare
from dtf_lightning.farm.record.reuse.writes import Reuse
from dtf_lightning.farm.record.values import Attempt, Envelope, TaskSpecification
from dtf_lightning.farm.server.envelopes import reused


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownResult:
    """A result that may stand for another task's."""

    task: str
    """Whose it is."""
    envelope: Envelope


class _Question(Enum):
    OPEN = "open"
    """It is to be asked."""
    ASKED = "asked"
    ANSWERED = "answered"
    """Nothing is known: the task runs."""


class Reuses:
    """Not thread-safe."""

    def __init__(self, fence: Compare) -> None:
        self._fence = fence
        self._questions: dict[str, _Question] = {}

    def holds_back(self, task: str, specification: TaskSpecification, attempt: Attempt) -> bool:
        """Whether a task that is ready must wait for an answer; if it was not asked for, it is now."""
        if not specification.reuse or specification.retry_of or attempt.number or attempt.workers:
            return False
        return self._questions.setdefault(task, _Question.OPEN) is not _Question.ANSWERED

    def waits(self, task: str) -> bool:
        """Whether a task waits for an answer."""
        return self._questions.get(task, _Question.ANSWERED) is not _Question.ANSWERED

    def take(self) -> list[str]:
        """Return the tasks about which nobody was asked yet."""
        taken = [task for task, question in self._questions.items() if question is _Question.OPEN]
        self._questions.update(dict.fromkeys(taken, _Question.ASKED))
        return taken

    def told(self, task: str, specification: TaskSpecification, known: KnownResult | None, now: float) -> Reuse | None:
        """Take in an answer; returns the write that ends the task, or nothing if it is to run. `now`: since the epoch."""
        if known is None:
            self._questions[task] = _Question.ANSWERED
            return None
        return Reuse(task=task, envelope=reused(specification, known.task, known.envelope, now), fence=self._fence)

    def gone(self, task: str) -> None:
        """A task is not there any more."""
        self._questions.pop(task, None)


Answers = Mapping[str, KnownResult]
"""Task that was asked about -> the result that may stand for its own; those of which none is known are left out."""
