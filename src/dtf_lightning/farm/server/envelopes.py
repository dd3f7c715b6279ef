"""Envelopes of results, made from what the record and a worker tell. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from dtf_lightning.farm.calls.returned import MAX_TOLD
from dtf_lightning.farm.json_values import to_json
from dtf_lightning.farm.record.asked import pack
from dtf_lightning.farm.record.codec import MAX_ENVELOPE, size_of
from dtf_lightning.farm.record.values import (
    COMMAND_CHARACTERS,
    NO_ATTEMPT,
    Attempt,
    Envelope,
    FailedAttempt,
    TaskOutcome,
    TaskSpecification,
)
from dtf_lightning.farm.record.writes import RecordResult, RecordRetry
from dtf_lightning.farm.rules.attempts import (
    AttemptOutcome,
    Follow,
    OutcomeKind,
    is_retried,
    what_follows,
    why_suspect,
)
from dtf_lightning.farm.rules.submissions.fingerprint import fingerprint

T = TypeVar("T")

FEW = 300
"""Characters of each text of an envelope that would be too large with more."""
MAX_NAMES = 20
"""Metrics, counts and artifacts that an envelope names, each; the rest stands in the attempt's files."""


WIDEST = 6
"""Bytes of a character in a record, at most."""
SURROUND = 30
"""Bytes of a number, at most, or of what stands around a text."""
MAX_COUNT = 10**20
FRAME = 600
"""Bytes of an envelope's names and of the texts that come from us, a fingerprint among them."""

_OUTCOMES = {
    Follow.COMPLETED: TaskOutcome.COMPLETED,
    Follow.FAILED: TaskOutcome.FAILED,
    Follow.CANCELLED: TaskOutcome.CANCELLED,
}


def end_of_attempt(
    task: str,
    specification: TaskSpecification,
    attempt: Attempt,
    revision: int,
    told: AttemptOutcome,
    worker: str,
) -> RecordResult | RecordRetry:
    """Return the write that follows from an attempt's end: the task's result, or another try, elsewhere than on `worker`."""
    lost = told.kind is OutcomeKind.LOST
    counts = is_retried(
        told.kind, _exit_code(told), on=specification.retry_on, exit_codes=specification.retry_exit_codes
    )
    follow = what_follows(
        told.kind,
        failures=attempt.failures,
        retries=specification.retries,
        lost=attempt.lost + lost,
        counts=counts,
    )
    if follow is Follow.AGAIN:
        yielded = told.kind is OutcomeKind.YIELDED
        again = attempt.lent(told.ended) if yielded else attempt.given_back(worker, lost=lost)
        failed = FailedAttempt(revision=revision, workers=attempt.workers, reason=told.reason, ended=told.ended)
        return RecordRetry(task=task, number=attempt.number, failed=failed, attempt=again)
    reason = f"{why_suspect(attempt.lost + 1, worker)} ({told.reason})" if lost else told.reason
    envelope = envelope_of(specification, _OUTCOMES[follow], reason, attempt=attempt, revision=revision)
    envelope = with_attempt(envelope, told)
    if follow is Follow.COMPLETED and specification.reuse and not told.missing:
        whole = bool(envelope.artifacts) or not told.artifacts  # else nobody can tell whether they are still there
        envelope = replace(envelope, fingerprint=fingerprint_of(specification) if whole else "")
    return RecordResult(task=task, envelope=envelope)


def fingerprint_of(specification: TaskSpecification) -> str:
    """Return what tells that two tasks are the same work."""
    return fingerprint(to_json(specification))


def reused(specification: TaskSpecification, source: str, known: Envelope, now: float) -> Envelope:
    """Return the envelope of a task that ends by the result of another one: no worker and no time of its own.

    Args:
        source: the task whose result it is.
        known: that result.
        now: seconds since the epoch.
    """
    mine = envelope_of(
        specification,
        known.outcome,
        f"the result of {source}, which had the same inputs",
        attempt=NO_ATTEMPT,
        revision=0,
    )
    told = replace(
        mine,
        ended=now,
        exit_code=known.exit_code,
        kind=known.kind,
        metrics=known.metrics,
        counts=known.counts,
        artifacts=known.artifacts,
        log_bytes=known.log_bytes,
        tail=known.tail,
        returned=known.returned,
        reused_from=source,
    )
    return fitting(told)


def bounded(told: AttemptOutcome) -> AttemptOutcome:
    """Return an outcome of which metrics, counts and artifacts are `MAX_NAMES` at most, each."""
    return replace(told, metrics=_first(told.metrics), counts=_first(told.counts), artifacts=_first(told.artifacts))


def envelope_of(
    specification: TaskSpecification, outcome: TaskOutcome, reason: str, *, attempt: Attempt, revision: int
) -> Envelope:
    """Return the envelope of a task that an attempt has ended, as far as the record knows."""
    return Envelope(
        outcome=outcome,
        attempt=attempt.number,
        revision=revision,
        workers=attempt.workers,
        reason=reason,
        submitted=specification.submitted,
        project=specification.project,
        plan=specification.plan,
        name=specification.name,
        command=shortened(specification.command),
        retry_of=specification.retry_of,
        asked=pack(specification),
    )


def ended_without_attempt(
    specification: TaskSpecification,
    outcome: TaskOutcome,
    reason: str,
    *,
    number: int,
    revision: int,
    workers: tuple[str, ...] = (),
) -> Envelope:
    """Return the envelope of a task that ends though no attempt of it has: skipped, expired, cancelled.

    `workers`: of the attempt that is going on, if there is one.
    """
    attempt = Attempt(number=number, workers=workers)
    return envelope_of(specification, outcome, reason, attempt=attempt, revision=revision)


def with_attempt(envelope: Envelope, told: AttemptOutcome) -> Envelope:
    """Add what the worker tells of the attempt."""
    metrics = {**told.metrics, "cpu_seconds": told.cpu_seconds, "peak_memory": float(told.peak_memory)}
    whole = replace(
        envelope,
        started=told.started,
        ended=told.ended,
        exit_code=_exit_code(told),
        kind=told.kind.value,
        metrics=_first(metrics),
        counts=_first(told.counts),
        artifacts=_first(told.artifacts),
        missing=told.missing[:MAX_NAMES],
        log_bytes=told.log_bytes,
        tail=told.tail,
        returned=told.returned if len(told.returned) <= MAX_TOLD else "",
    )
    return fitting(whole)


def fitting(envelope: Envelope) -> Envelope:
    """Return an envelope with as much of what it holds as a record may: all of it lies in the attempt's files.

    In this order: fewer artifacts, fewer metrics, fewer counts, a shorter tail, shorter texts, no value of a call; what
    ended it, and why, stays.
    """
    if is_small(envelope):
        return envelope
    for share in (1.0, 0.5, 0.25, 0.0):
        for part in ("missing", "artifacts", "metrics", "counts"):
            if size_of(envelope) <= MAX_ENVELOPE:
                return envelope
            envelope = replace(envelope, **{part: _share(getattr(envelope, part), share)})
    envelope = replace(envelope, tail=envelope.tail[-FEW:])
    if size_of(envelope) > MAX_ENVELOPE:
        envelope = replace(envelope, name=envelope.name[:FEW], reason=envelope.reason[:FEW])
    envelope = replace(envelope, project=envelope.project[:FEW], plan=envelope.plan[:FEW])
    return envelope if size_of(envelope) <= MAX_ENVELOPE else replace(envelope, returned="")


def is_small(envelope: Envelope) -> bool:
    """Whether it surely fits, which need not be written down to be known: most do."""
    if envelope.artifacts or any(abs(count) > MAX_COUNT for count in envelope.counts.values()):
        return False
    texts = (
        *(envelope.reason, envelope.tail, envelope.project, envelope.plan, envelope.name, envelope.retry_of),
        *(envelope.returned, envelope.reused_from),
        *envelope.command,
        *envelope.workers,
        *envelope.missing,
        *envelope.metrics,
        *envelope.counts,
    )
    numbers = 12 + len(envelope.metrics) + len(envelope.counts)
    return WIDEST * sum(map(len, texts)) + SURROUND * (len(texts) + numbers) + FRAME < MAX_ENVELOPE


def _share(values: Any, share: float) -> Any:
    left = int(len(values) * share)
    return values[:left] if isinstance(values, tuple) else dict(list(values.items())[:left])


def _exit_code(told: AttemptOutcome) -> int | None:
    return 128 + told.signal if told.exit_code is None and told.signal else told.exit_code


def shortened(command: tuple[str, ...]) -> tuple[str, ...]:
    """Return a command's words up to `COMMAND_CHARACTERS` in all, the last of them with an ellipsis where it was cut."""
    words: list[str] = []
    left = COMMAND_CHARACTERS
    for word in command:
        if len(word) > left:
            return (*words, word[:left] + "…")
        words.append(word)
        left -= len(word) + 1
        if left <= 0:
            return tuple(words)
    return tuple(words)


def _first(values: Mapping[str, T]) -> dict[str, T]:
    return dict(sorted(values.items())[:MAX_NAMES]) if values else {}
