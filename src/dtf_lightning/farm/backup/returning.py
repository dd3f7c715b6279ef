"""What of a farm's record comes back from a backup, and as what. Pure.

| kind | comes back |
|---|---|
| what was accepted and what has ended, projects, licences, schedules, tokens, keys, secrets (sealed), incidents, silences | as it was |
| an attempt that ran | as one that waits: the task runs again, from its start, as the next attempt; this counts no try against it |
| leader, coordinators (also that one was disabled), terms, nodes | not: fences and terms are revisions of the etcd that is gone |
| workers, their health, what they held | not: they register anew |
| the tokens of workers that have joined | not: which of them is good next is not known; they join anew |

Rules that this file guards:
- Nothing that was running is believed to run.
- A task whose result lies in the archive has ended, also where the record does not know it yet: of it comes back that its id
  is used. The archive is read after the record, so it may know more.
- Every kind of record has its rule (`RULES`); a key that this release does not know does not come back, and is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum

from dtf_lightning.farm.record.codec import decode, encode
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.schedules.values import ScheduleRecord
from dtf_lightning.farm.record.values import Attempt, TaskOutcome, TaskSpecification, Tombstone


class Rule(Enum):
    """What becomes of the records of a kind."""

    AS_IT_WAS = "as it was"
    WAITS = "waits to be tried again"
    NOT = "does not come back"
    OF_A_TASK = "as it was, unless the archive has its task's result"
    TOKEN = "as it was, unless tokens are to be forgotten"


RULES: Mapping[Kind, Rule] = {
    Kind.LEADER: Rule.NOT,
    Kind.COORDINATOR: Rule.NOT,
    Kind.TERM: Rule.NOT,
    Kind.NODE: Rule.NOT,
    Kind.DISABLED: Rule.NOT,
    Kind.WORKER: Rule.NOT,
    Kind.HEALTH: Rule.NOT,
    Kind.ENDING: Rule.NOT,
    Kind.MEETING: Rule.NOT,
    Kind.MEMBER: Rule.NOT,
    Kind.YIELD: Rule.NOT,
    Kind.FAMILY: Rule.NOT,
    Kind.ATTEMPT: Rule.WAITS,
    Kind.TASK: Rule.OF_A_TASK,
    Kind.DONE: Rule.OF_A_TASK,
    Kind.FAILED: Rule.OF_A_TASK,
    Kind.BORROWINGS: Rule.OF_A_TASK,
    Kind.KEY: Rule.AS_IT_WAS,
    Kind.TOMBSTONE: Rule.AS_IT_WAS,
    Kind.PLAN: Rule.AS_IT_WAS,
    Kind.PROJECT: Rule.AS_IT_WAS,
    Kind.LICENCE: Rule.AS_IT_WAS,
    Kind.SCHEDULE: Rule.AS_IT_WAS,
    Kind.QUARANTINE: Rule.AS_IT_WAS,
    Kind.SECRET: Rule.AS_IT_WAS,
    Kind.ORCHESTRATION: Rule.AS_IT_WAS,
    Kind.RESERVATION: Rule.AS_IT_WAS,
    Kind.SCALING: Rule.NOT,
    Kind.ALERT: Rule.AS_IT_WAS,
    Kind.SILENCE: Rule.AS_IT_WAS,
    Kind.SIGNING_KEY: Rule.TOKEN,
    Kind.TOKEN: Rule.TOKEN,
    Kind.REVOKED: Rule.TOKEN,
}
"""Kind of record -> what becomes of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A key of the record and its value."""

    key: str
    """Behind the farm's prefix."""
    value: bytes


@dataclass(frozen=True, kw_only=True)
class Returning:
    """What is to be written, and what is to be told of it."""

    entries: tuple[Entry, ...]
    waiting: int = 0
    """Tasks that are not done."""
    again: tuple[str, ...] = ()
    """Of these, those that were running, and run again."""
    ended_since: tuple[str, ...] = ()
    """Tasks that the record holds to be open, and whose results the archive has."""
    unknown: tuple[str, ...] = ()
    """Keys that this release does not know."""
    kinds: Mapping[str, int] = field(default_factory=dict)
    """Kind -> how many of it come back."""


def returning(
    keys: FarmKeys, record: Iterable[Entry], archived: Mapping[str, str], *, now: float, forget_tokens: bool = False
) -> Returning:
    """Decide what is written into an empty etcd.

    Args:
        record: the backup's.
        archived: task -> how it ended, of results that the archive has.
        now: seconds since the epoch, for what is noted of these.
        forget_tokens: whether all tokens that the farm has signed are to end.

    Raises `ProtocolError` for an attempt that this release cannot read.
    """
    entries: list[Entry] = []
    unknown: list[str] = []
    again: list[str] = []
    ended: set[str] = set()
    since: set[str] = set()
    waiting = 0
    kinds: Counter[str] = Counter()
    for entry in record:
        parsed = keys.parse(keys.prefix + entry.key)
        if parsed is None:
            unknown.append(entry.key)
            continue
        kind, names = parsed
        rule = RULES[kind]
        if rule is Rule.NOT or (rule is Rule.TOKEN and forget_tokens):
            continue
        if rule in (Rule.OF_A_TASK, Rule.WAITS) and names[0] in archived:
            if kind in (Kind.TASK, Kind.DONE):
                ended.add(names[0])
            if kind is Kind.TASK:
                since.add(names[0])
            continue
        if rule is Rule.WAITS:
            attempt = decode(kind, entry.value)
            assert isinstance(attempt, Attempt)
            if attempt.workers:
                again.append(names[0])
            entries.append(Entry(key=entry.key, value=encode(replace(attempt, workers=(), epoch=0))))
        else:
            entries.append(entry)
        waiting += kind is Kind.TASK
        kinds[kind.value] += 1
    for task in sorted(ended):
        tombstone = Tombstone(outcome=TaskOutcome(archived[task]), archived=now)
        key = keys.key(Kind.TOMBSTONE, task).removeprefix(keys.prefix)
        entries.append(Entry(key=key, value=encode(tombstone)))
        kinds[Kind.TOMBSTONE.value] += 1
    return Returning(
        entries=tuple(entries),
        waiting=waiting,
        again=tuple(sorted(again)),
        ended_since=tuple(sorted(since)),
        unknown=tuple(unknown),
        kinds=kinds,
    )


@dataclass(frozen=True, kw_only=True)
class Needed:
    """What open tasks and schedules have in the farm's folder."""

    sources: frozenset[str]
    """By digest."""
    stdin: frozenset[str]
    """By task."""


def needed(keys: FarmKeys, record: Iterable[Entry]) -> Needed:
    """Return it. Raises `ProtocolError` for a task or a schedule that this release cannot read."""
    sources: set[str] = set()
    stdin: set[str] = set()
    for entry in record:
        parsed = keys.parse(keys.prefix + entry.key)
        if parsed is None or parsed[0] not in (Kind.TASK, Kind.SCHEDULE):
            continue
        value = decode(parsed[0], entry.value)
        if isinstance(value, TaskSpecification):
            sources.update(value.stored)
            stdin.update(filter(None, [value.stdin]))
        elif isinstance(value, ScheduleRecord):
            sources.update(filter(None, [value.source]))
    return Needed(sources=frozenset(sources), stdin=frozenset(stdin))
