"""Envelopes of results as rows, and back. Pure.

Rule: every envelope has a row. A field whose value no column can hold (a time beyond the calendar, a number beyond
64 bits) is left empty in it, and `problems` says which and what stood there: one worker's nonsense must not keep the
result itself, or those beside it, out of the database.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from dtf_lightning.farm.record.values import Envelope, FailedAttempt, TaskOutcome

Row = dict[str, Any]

LAST_SECOND = 253402300799.0
"""The end of the year 9999."""
MAX_INTEGER = 2**63 - 1
TOLD = 80
"""Characters of a value that `problems` repeats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenResult:
    """A result as etcd showed it."""

    task: str
    envelope: Envelope
    recorded: int
    """The mod revision of its key, by which `record.writes.Archive` names it."""
    seen: float
    """When it was first shown here, seconds since the epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenFailure:
    """An attempt after which the task is tried again, as etcd showed it."""

    task: str
    number: int
    failed: FailedAttempt


def result_row(result: SeenResult) -> Row:
    """Return the row of a result; times are microseconds since the epoch."""
    envelope, fit = result.envelope, _Fitting()
    row = {
        "task": stored(result.task),
        "project": stored(envelope.project),
        "plan": stored(envelope.plan),
        "name": stored(envelope.name),
        "command": [stored(word) for word in envelope.command],
        "outcome": envelope.outcome.value,
        "kind": stored(envelope.kind),
        "reason": stored(envelope.reason),
        "exit_code": fit.integer("exit_code", envelope.exit_code),
        "attempt": fit.integer("attempt", envelope.attempt) or 0,
        "revision": fit.integer("revision", envelope.revision) or 0,
        "workers": [stored(worker) for worker in envelope.workers],
        "submitted": fit.time("submitted", envelope.submitted),
        "started": fit.time("started", envelope.started),
        "ended": fit.time("ended", envelope.ended),
        "metrics": [(stored(name), value) for name, value in envelope.metrics.items()],
        "counts": [
            (stored(name), value)
            for name, told in envelope.counts.items()
            if (value := fit.integer(f"counts.{name}", told)) is not None
        ],
        "artifacts": [(stored(name), stored(url)) for name, url in envelope.artifacts.items()],
        "log_bytes": fit.integer("log_bytes", envelope.log_bytes) or 0,
        "tail": stored(envelope.tail),
        "retry_of": stored(envelope.retry_of),
        "asked": stored(envelope.asked),
        "returned": stored(envelope.returned),
        "fingerprint": envelope.fingerprint,
        "reused_from": envelope.reused_from,
        "recorded": result.recorded,
        "seen": microseconds(result.seen),
    }
    return row | {"problems": fit.problems}


def failure_row(failure: SeenFailure) -> Row:
    """Return the row of a failed attempt."""
    failed, fit = failure.failed, _Fitting()
    return {
        "task": stored(failure.task),
        "number": fit.integer("number", failure.number) or 0,
        "revision": fit.integer("revision", failed.revision) or 0,
        "workers": [stored(worker) for worker in failed.workers],
        "reason": stored(failed.reason),
        "ended": fit.time("ended", failed.ended),
    }


def envelope_of(row: Mapping[str, Any]) -> Envelope:
    """Return the envelope that a row was made of, as DuckDB gives it back."""
    return Envelope(
        outcome=TaskOutcome(row["outcome"]),
        attempt=row["attempt"],
        revision=row["revision"],
        workers=tuple(row["workers"]),
        reason=row["reason"],
        started=seconds(row["started"]),
        ended=seconds(row["ended"]),
        exit_code=row["exit_code"],
        kind=row["kind"],
        metrics=row["metrics"],
        counts=row["counts"],
        artifacts=row["artifacts"],
        log_bytes=row["log_bytes"],
        tail=row["tail"],
        submitted=seconds(row["submitted"]),
        project=row["project"],
        plan=row["plan"],
        name=row["name"],
        command=tuple(row["command"]),
        retry_of=row["retry_of"] or "",
        asked=row["asked"] or "",
        returned=row["returned"] or "",
        fingerprint=row["fingerprint"] or "",
        reused_from=row["reused_from"] or "",
    )


def microseconds(wall: float) -> int:
    """Return seconds since the epoch as a column holds them."""
    return round(wall * 1e6)


def moment(wall: float) -> datetime:
    """Return seconds since the epoch as DuckDB compares them: UTC, without saying so."""
    return datetime.fromtimestamp(wall, UTC).replace(tzinfo=None)


def seconds(moment: datetime | None) -> float | None:
    """Return what a column of times gave back as seconds since the epoch."""
    return None if moment is None else moment.replace(tzinfo=UTC).timestamp()


def one_of_each(results: Iterable[SeenResult]) -> list[SeenResult]:
    """Return the first of each task: a batch may show one twice."""
    first: dict[str, SeenResult] = {}
    for result in results:
        first.setdefault(result.task, result)
    return list(first.values())


class _Fitting:
    """Collects what did not fit into its column."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def integer(self, field: str, value: int | None) -> int | None:
        if value is None or -MAX_INTEGER <= value <= MAX_INTEGER:
            return value
        self._unfit(field, value, "a number of 64 bits")
        return None

    def time(self, field: str, wall: float | None) -> int | None:
        if wall is None:
            return None
        if math.isfinite(wall) and 0 <= wall <= LAST_SECOND:
            return microseconds(wall)
        self._unfit(field, wall, "seconds since the epoch")
        return None

    def _unfit(self, field: str, value: object, expected: str) -> None:
        self.problems.append(f"{stored(field)}: got {str(value)[:TOLD]}, expected {expected}")


def stored(text: str) -> str:
    """Return a text as columns hold it, which is UTF-8: what a command wrote, or is called, may be any bytes."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
