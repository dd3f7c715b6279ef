"""How a gang's attempt ends, which several workers make together. Pure.

| its members | the attempt |
|---|---|
| all have completed | has completed |
| one has ended otherwise | the farm ends the others; when the last has ended, so has the attempt |

Rules that this file guards:
- The member that ended badly first, in the record's order, says how the attempt ended and where it is not tried again. What
  the others come to afterwards is a consequence: their peers were gone, or the farm ended them.
- The exit code is the worst: the highest of the members that the farm did not end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dtf_lightning.farm.rules.attempts import AttemptOutcome, OutcomeKind

MAX_GANG = 64
"""Members: each is a key that the attempt's end deletes, in one transaction."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """How one member ended."""

    rank: int
    worker: str
    order: int
    """Where the record has it among the others: a lower number came earlier."""
    outcome: AttemptOutcome


def first_to_fail(members: Sequence[Member]) -> Member | None:
    """Return the member that ended badly first; `None` while all that have ended have completed."""
    failed = [member for member in members if member.outcome.kind is not OutcomeKind.COMPLETED]
    return min(failed, key=lambda member: (member.order, member.rank), default=None)


def together(members: Sequence[Member]) -> tuple[AttemptOutcome, Member]:
    """Return how the attempt of a whole gang ended, and the member whose end that is.

    CPU seconds, counts and bytes of output are sums, peak memory is the largest, a metric is that of the lowest rank that
    reported it, an artifact's name begins with its member's rank. Raises `ValueError` for a gang without members.
    """
    if not members:
        raise ValueError("a gang without members")
    ranked = sorted(members, key=lambda member: member.rank)
    failed = first_to_fail(ranked)
    decisive = failed or ranked[0]
    told = [member.outcome for member in ranked]
    counts: dict[str, int] = {}
    for outcome in told:
        for name, number in outcome.counts.items():
            counts[name] = counts.get(name, 0) + number
    return replace(
        decisive.outcome,
        reason=_reason(failed, len(ranked)) if failed is not None else decisive.outcome.reason,
        exit_code=None if (worst := _worst(ranked, decisive)) is None else worst,
        signal=decisive.outcome.signal if worst is None else None,
        started=min(outcome.started for outcome in told),
        ended=max(outcome.ended for outcome in told),
        cpu_seconds=sum(outcome.cpu_seconds for outcome in told),
        peak_memory=max(outcome.peak_memory for outcome in told),
        metrics={name: value for outcome in reversed(told) for name, value in outcome.metrics.items()},
        counts=counts,
        artifacts={f"{member.rank}/{name}": url for member in ranked for name, url in member.outcome.artifacts.items()},
        log_bytes=sum(outcome.log_bytes for outcome in told),
    ), decisive


def _reason(failed: Member, world: int) -> str:
    return f"member {failed.rank} of {world}, on {failed.worker}: {failed.outcome.reason or failed.outcome.kind.value}"


def _worst(members: Sequence[Member], decisive: Member) -> int | None:
    """The highest exit code, 128 + n for signal n, of those that ended by themselves; `None` if nobody knows one."""
    codes = [
        code
        for member in members
        if member is decisive or member.outcome.kind is not OutcomeKind.CANCELLED
        if (code := _code(member.outcome)) is not None
    ]
    return max(codes, default=None)


def _code(outcome: AttemptOutcome) -> int | None:
    if outcome.exit_code is not None:
        return outcome.exit_code
    return 128 + outcome.signal if outcome.signal is not None else None
