"""What follows when an attempt has ended."""

from __future__ import annotations

import pytest

from dtf_lightning.farm.rules.attempts import SUSPECT, Follow, OutcomeKind, what_follows

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
