"""What comes back from a backup, and as what."""

from __future__ import annotations

import pytest

from dtf_lightning.farm.backup.returning import RULES, Entry, Rule, needed, returning
from dtf_lightning.farm.record.codec import decode, encode
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.values import (
    Attempt,
    Envelope,
    FailedAttempt,
    LeaderRecord,
    TaskOutcome,
    TaskSpecification,
    Tombstone,
)

KEYS = FarmKeys("f")
TASK = TaskSpecification(command=("true",))
DONE = Envelope(outcome=TaskOutcome.COMPLETED, attempt=1, revision=7)


def entry(kind, *names, value=None, raw=b"{}"):
    return Entry(key=KEYS.key(kind, *names).removeprefix(KEYS.prefix), value=raw if value is None else encode(value))


def read(told, kind, *names):
    """What comes back under a key; `None`: nothing."""
    key = KEYS.key(kind, *names).removeprefix(KEYS.prefix)
    found = [one.value for one in told.entries if one.key == key]
    assert len(found) <= 1
    return decode(kind, found[0]) if found else None


def test_every_kind_has_its_rule():
    assert RULES.keys() == set(Kind)


@pytest.mark.parametrize("kind", [kind for kind, rule in RULES.items() if rule is Rule.NOT])
def test_what_was_of_the_moment_does_not_come_back(kind):
    names = {Kind.LEADER: (), Kind.ENDING: ("t", "5"), Kind.MEMBER: ("t", 0)}.get(kind, ("x",))
    assert returning(KEYS, [entry(kind, *names)], {}, now=1.0).entries == ()


def test_an_attempt_that_ran_waits():
    """It keeps its number and what counts against its task: the next attempt has the next number."""
    ran = Attempt(number=3, workers=("w1", "w2"), failures=1, lost=1, epoch=9, excluded=("w0",))
    told = returning(KEYS, [entry(Kind.TASK, "t", value=TASK), entry(Kind.ATTEMPT, "t", value=ran)], {}, now=1.0)
    assert read(told, Kind.ATTEMPT, "t") == Attempt(number=3, failures=1, lost=1, excluded=("w0",))
    assert read(told, Kind.TASK, "t") == TASK
    assert (told.again, told.waiting) == (("t",), 1)


def test_what_waited_is_not_said_to_run_again():
    born = Attempt(number=0, born=40)
    told = returning(KEYS, [entry(Kind.TASK, "a", value=TASK), entry(Kind.ATTEMPT, "a", value=born)], {}, now=1.0)
    assert (told.again, read(told, Kind.ATTEMPT, "a")) == ((), born)


def test_what_the_archive_has_has_ended():
    """Also what the record holds to be running: the archive was read later. Nothing of it is left but that its id is used."""
    failed = FailedAttempt(revision=5, workers=("w",), reason="exit code 1", ended=2.0)
    record = [
        entry(Kind.TASK, "open", value=TASK),
        entry(Kind.ATTEMPT, "open", value=Attempt(number=2, workers=("w",))),
        entry(Kind.FAILED, "open", 1, value=failed),
        entry(Kind.DONE, "done", value=DONE),
        entry(Kind.DONE, "young", value=DONE),
    ]
    told = returning(KEYS, record, {"open": "failed", "done": "completed"}, now=50.0)
    assert read(told, Kind.TOMBSTONE, "open") == Tombstone(outcome=TaskOutcome.FAILED, archived=50.0)
    assert read(told, Kind.TOMBSTONE, "done") == Tombstone(outcome=TaskOutcome.COMPLETED, archived=50.0)
    assert read(told, Kind.DONE, "young") == DONE
    assert len(told.entries) == 3
    assert (told.ended_since, told.again, told.waiting) == (("open",), (), 0)


def test_tokens_can_be_forgotten():
    record = [entry(kind, "x") for kind in (Kind.SIGNING_KEY, Kind.TOKEN, Kind.REVOKED, Kind.PROJECT)]
    assert len(returning(KEYS, record, {}, now=1.0).entries) == 4
    (left,) = returning(KEYS, record, {}, now=1.0, forget_tokens=True).entries
    assert left.key == "projects/x"


def test_what_is_unknown_is_named():
    told = returning(KEYS, [Entry(key="of-a-newer-release/x", value=b"")], {}, now=1.0)
    assert (told.entries, told.unknown) == ((), ("of-a-newer-release/x",))


def test_leader_keys_do_not_come_back():
    assert returning(KEYS, [entry(Kind.LEADER, value=LeaderRecord(coordinator="c"))], {}, now=1.0).entries == ()


def test_what_open_tasks_need_of_the_folder():
    digest, given = "a" * 64, "b" * 64
    task = TaskSpecification(command=("true",), source=digest, stdin="t", inputs={"x": f"sha256:{given}"})
    found = needed(KEYS, [entry(Kind.TASK, "t", value=task), entry(Kind.DONE, "d", value=DONE)])
    assert digest in found.sources
    assert found.stdin == {"t"}
