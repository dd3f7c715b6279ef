"""Envelopes of results, made from what the record and a worker tell. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from dtf_lightning.farm.record.asked import pack
from dtf_lightning.farm.record.values import (
    COMMAND_CHARACTERS,
    Attempt,
    Envelope,
    TaskOutcome,
    TaskSpecification,
)
from dtf_lightning.farm.rules.attempts import AttemptOutcome

T = TypeVar("T")

MAX_NAMES = 20
"""Metrics, counts and artifacts that an envelope names, each; the rest stands in the attempt's files."""


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
    specification: TaskSpecification, outcome: TaskOutcome, reason: str, *, number: int, revision: int
) -> Envelope:
    """Return the envelope of a task that ends though no attempt of it has: skipped, expired, cancelled."""
    return envelope_of(specification, outcome, reason, attempt=Attempt(number=number), revision=revision)


def with_attempt(envelope: Envelope, told: AttemptOutcome) -> Envelope:
    """Add what the worker tells of the attempt."""
    metrics = {**told.metrics, "cpu_seconds": told.cpu_seconds, "peak_memory": float(told.peak_memory)}
    return replace(
        envelope,
        started=told.started,
        ended=told.ended,
        exit_code=128 + told.signal if told.exit_code is None and told.signal else told.exit_code,
        kind=told.kind.value,
        metrics=_first(metrics),
        counts=_first(told.counts),
        artifacts=_first(told.artifacts),
        log_bytes=told.log_bytes,
        tail=told.tail,
    )


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
    return dict(sorted(values.items())[:MAX_NAMES])
