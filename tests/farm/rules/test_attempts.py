"""What follows when an attempt has ended."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.rules.attempts import SUSPECT, Follow, OutcomeKind, is_retried, what_follows

AGAIN, FAILED = Follow.AGAIN, Follow.FAILED


@pytest.mark.parametrize(
    ("kind", "failures", "retries", "lost", "follow"),
    [
        (OutcomeKind.COMPLETED, 0, 0, 0, Follow.COMPLETED),
        (OutcomeKind.COMPLETED, 5, 0, 9, Follow.COMPLETED),
        (OutcomeKind.CANCELLED, 0, 5, 0, Follow.CANCELLED),
        (OutcomeKind.FAILED, 0, 0, 0, FAILED),
        (OutcomeKind.FAILED, 0, 1, 0, AGAIN),
        (OutcomeKind.FAILED, 1, 1, 0, FAILED),
        (OutcomeKind.TIMEOUT, 0, 2, 0, AGAIN),
        (OutcomeKind.TIMEOUT, 2, 2, 0, FAILED),
        # A lost worker costs no try, until it is likely to be the task's doing.
        (OutcomeKind.LOST, 0, 0, 1, AGAIN),
        (OutcomeKind.LOST, 9, 0, SUSPECT - 1, AGAIN),
        (OutcomeKind.LOST, 0, 9, SUSPECT, FAILED),
    ],
)
def test_what_follows(kind, failures, retries, lost, follow):
    assert what_follows(kind, failures=failures, retries=retries, lost=lost) is follow


KINDS = [OutcomeKind.FAILED, OutcomeKind.TIMEOUT]


@given(
    st.sampled_from(KINDS),
    st.none() | st.integers(0, 255),
    st.lists(st.sampled_from([kind.value for kind in KINDS]), unique=True),
    st.lists(st.integers(1, 255)),
    st.integers(0, 3),
    st.integers(0, 3),
)
def test_what_counts(kind, exit_code, on, exit_codes, failures, retries):
    """Said slowly: a kind that is named, or any where none is; of failures an exit code that is named, or any."""
    counts = True
    if on and kind.value not in on:
        counts = False
    if kind is OutcomeKind.FAILED and exit_codes and exit_code not in exit_codes:
        counts = False
    assert is_retried(kind, exit_code, on=on, exit_codes=exit_codes) is counts
    follow = what_follows(kind, failures=failures, retries=retries, lost=0, counts=counts)
    assert (follow is AGAIN) == (counts and failures < retries)


def test_other_ends_ask_for_no_tries():
    for kind in set(OutcomeKind) - set(KINDS):
        assert not is_retried(kind, 1)
