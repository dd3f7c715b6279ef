"""How an attempt ended, as its worker tells it, and what follows for the task. Pure.

| the attempt ended | and the task has tries left | and it has none |
|---|---|---|
| `completed` | the task is completed | the task is completed |
| `failed`, `timeout`, if the task's retries count it | it is tried again, elsewhere if that can be | the task has failed |
| `failed`, `timeout`, if they do not | the task has failed | the task has failed |
| `lost` (its worker died, or could not run it) | it is tried again, elsewhere; this counts no try | it has failed as suspect |
| `cancelled` | the task is cancelled | the task is cancelled |
| `yielded` (a training's part has given its device back) | it waits for a device | it waits for a device |

"Suspect": `SUSPECT` workers were lost while they ran it, so that it is likely to be the task that kills them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum

SUSPECT = 3
"""Lost workers after which a task is held to be the cause."""
TAIL_BYTES = 2048
"""Of an attempt's output, what is kept beside its outcome."""


class OutcomeKind(StrEnum):
    """The ways in which an attempt ends."""

    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    LOST = "lost"
    YIELDED = "yielded"
    """A part of a training has given its device back, because it was asked to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttemptOutcome:
    """How an attempt ended. Times are seconds since the epoch by the worker's clock."""

    kind: OutcomeKind
    reason: str = ""
    """One sentence, such as "exit code 3" or "ended by its timeout of 5 s"."""
    exit_code: int | None = None
    """`None`: it was ended by a signal, or nobody knows."""
    signal: int | None = None
    started: float = 0.0
    ended: float = 0.0
    cpu_seconds: float = 0.0
    """Of all its processes, in user and kernel mode."""
    peak_memory: int = 0
    """Resident bytes: of its processes together as far as they were sampled, at least those of the largest."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    """Test cases: `tests`, `passed`, `failed`, `errors`, `skipped`."""
    artifacts: Mapping[str, str] = field(default_factory=dict)
    """Name -> where it lies."""
    missing: tuple[str, ...] = ()
    """Names of files that it has left and that could not be stored; the reason says why."""
    log_bytes: int = 0
    """Length of its output: when these have been told, all have been."""
    tail: str = ""
    """The last `TAIL_BYTES` of its output, as text."""
    returned: str = ""
    """Of a call: what is told of its value (`farm.calls.returned`)."""


RETRIED_ON = (OutcomeKind.FAILED.value, OutcomeKind.TIMEOUT.value)
"""Ends of an attempt after which a task may be tried again, where its retries name none."""


def is_retried(
    kind: OutcomeKind, exit_code: int | None, *, on: Collection[str] = (), exit_codes: Collection[int] = ()
) -> bool:
    """Whether an end of its own fault lets a task be tried again, as far as it has tries left.

    Args:
        kind: `FAILED` or `TIMEOUT`; any other end does not ask for tries.
        exit_code: the command's; 128 + n where signal n ended it.
        on: kinds that count; none: `RETRIED_ON`.
        exit_codes: of a command that failed, those that count; none: all.
    """
    if kind.value not in (on or RETRIED_ON):
        return False
    return kind is not OutcomeKind.FAILED or not exit_codes or exit_code in exit_codes


class Follow(Enum):
    """What an attempt's end means for its task."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    AGAIN = "again"


def what_follows(kind: OutcomeKind, *, failures: int, retries: int, lost: int, counts: bool = True) -> Follow:
    """Say what becomes of a task whose attempt has ended.

    Args:
        kind: how it ended.
        failures: attempts before it that count as tries.
        retries: how often the task may be tried again.
        lost: workers that were lost with this task, this attempt's among them.
        counts: whether this end is one after which the task may be tried again (`is_retried`).
    """
    if kind is OutcomeKind.COMPLETED:
        return Follow.COMPLETED
    if kind is OutcomeKind.CANCELLED:
        return Follow.CANCELLED
    if kind is OutcomeKind.YIELDED:
        return Follow.AGAIN
    if kind is OutcomeKind.LOST:
        return Follow.FAILED if lost >= SUSPECT else Follow.AGAIN
    return Follow.AGAIN if counts and failures < retries else Follow.FAILED


def why_suspect(lost: int, last: str) -> str:
    """Say why a task fails that so many workers were lost with, `last` the last of them."""
    return f"{lost} workers were lost while they ran it, {last} the last of them: the task itself is suspected"
