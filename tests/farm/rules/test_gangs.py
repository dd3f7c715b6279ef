"""How a gang's attempt ends, from how its members do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.rules.attempts import AttemptOutcome, OutcomeKind
from dtf_lightning.farm.rules.gangs import Member, first_to_fail, together


def member(rank, kind=OutcomeKind.COMPLETED, order=None, **fields):
    fields.setdefault("exit_code", 0 if kind is OutcomeKind.COMPLETED else 1)
    outcome = AttemptOutcome(kind=kind, **fields)
    return Member(rank=rank, worker=f"w{rank}", order=rank if order is None else order, outcome=outcome)


def test_all_have_completed():
    told, decisive = together(
        [
            member(
                1, cpu_seconds=2.0, peak_memory=5, metrics={"loss": 9.0, "rate": 1.0}, counts={"tests": 1}, ended=4.0
            ),
            member(
                0, cpu_seconds=1.0, peak_memory=7, metrics={"loss": 0.5}, counts={"tests": 2}, started=1.0, ended=3.0
            ),
        ]
    )
    assert (told.kind, told.exit_code, decisive.rank) == (OutcomeKind.COMPLETED, 0, 0)
    assert (told.cpu_seconds, told.peak_memory, told.started, told.ended) == (3.0, 7, 0.0, 4.0)
    assert (told.metrics, told.counts) == ({"loss": 0.5, "rate": 1.0}, {"tests": 3})


def test_the_first_to_fail_says_how_and_the_worst_exit_code_counts():
    told, decisive = together(
        [
            member(0, OutcomeKind.FAILED, order=8, exit_code=9, reason="its peer was gone"),
            member(1, OutcomeKind.FAILED, order=7, exit_code=3, reason="exit code 3"),
            member(2, OutcomeKind.CANCELLED, order=9, exit_code=None, signal=15),
        ]
    )
    assert (told.kind, told.exit_code, told.signal, decisive.rank) == (OutcomeKind.FAILED, 9, None, 1)
    assert told.reason == "member 1 of 3, on w1: exit code 3"


def test_a_signal_is_worse_than_an_exit_code():
    told, _ = together(
        [member(0, OutcomeKind.FAILED, exit_code=None, signal=11), member(1, OutcomeKind.FAILED, exit_code=1)]
    )
    assert told.exit_code == 139


def test_one_that_never_began():
    told, _ = together([member(0, OutcomeKind.LOST, exit_code=None), member(1, OutcomeKind.CANCELLED, exit_code=None)])
    assert (told.kind, told.exit_code, told.signal) == (OutcomeKind.LOST, None, None)


def test_nobody():
    with pytest.raises(ValueError, match="without members"):
        together([])


def outcomes():
    def one(kind, code, signal, seconds):
        ended_by_itself = kind is not OutcomeKind.CANCELLED and not signal
        return AttemptOutcome(
            kind=kind,
            exit_code=0 if kind is OutcomeKind.COMPLETED else code if ended_by_itself else None,
            signal=signal if kind not in (OutcomeKind.COMPLETED,) and not ended_by_itself else None,
            cpu_seconds=seconds,
        )

    return st.builds(
        one,
        st.sampled_from(list(OutcomeKind)),
        st.integers(1, 255),
        st.sampled_from([0, 9, 11, 15]),
        st.floats(0, 1e6),
    )


@given(st.lists(outcomes(), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_against_the_table(told, chance):
    """A slow reading of the table in the rule's head; who is asked in which order does not matter."""
    orders = list(range(len(told)))
    chance.shuffle(orders)
    members = [Member(rank=n, worker=f"w{n}", order=orders[n], outcome=outcome) for n, outcome in enumerate(told)]
    bad = sorted((one for one in members if one.outcome.kind is not OutcomeKind.COMPLETED), key=lambda one: one.order)
    shuffled = members[:]
    chance.shuffle(shuffled)
    result, decisive = together(shuffled)
    assert decisive == (bad[0] if bad else members[0])
    assert first_to_fail(shuffled) == (bad[0] if bad else None)
    assert result.kind is decisive.outcome.kind
    assert (result.kind is OutcomeKind.COMPLETED) == (not bad)
    codes = [
        one.outcome.exit_code if one.outcome.exit_code is not None else 128 + one.outcome.signal
        for one in members
        if (one == decisive or one.outcome.kind is not OutcomeKind.CANCELLED)
        and (one.outcome.exit_code is not None or one.outcome.signal is not None)
    ]
    shown = result.exit_code if result.exit_code is not None else 128 + result.signal if result.signal else None
    assert shown == max(codes, default=None)
    assert result.cpu_seconds == pytest.approx(sum(outcome.cpu_seconds for outcome in told))
