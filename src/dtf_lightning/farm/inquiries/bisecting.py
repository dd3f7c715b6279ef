"""`bisect`: tests commits, several at once, where they tell the most, until the culprit is sure or the budget is spent."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from dtf_lightning.clock import Clock
from dtf_lightning.errors import DtfError, SettingsError
from dtf_lightning.farm.inquiries.commits import Commit
from dtf_lightning.farm.verdicts.bisection import SURE, Bisection, Found


class Answer(Enum):
    """Of one test of a commit."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "cannot be tested"


@dataclass(frozen=True, kw_only=True)
class Answered:
    """One test."""

    position: int
    answer: Answer
    told: str = ""
    """More of it, for people."""


class Tests(Protocol):
    """What tests commits."""

    def run(self, positions: Sequence[int]) -> list[Answered]:
        """Test these, all at once where that can be; a position may come several times. Raises `NoMoreTests`."""


class NoMoreTests(DtfError):
    """No more tests can be made, and why."""


@dataclass(frozen=True, kw_only=True)
class Bisected:
    """How a bisection ended."""

    bisection: Bisection
    found: Found | None
    ended: str = ""
    """Why it ended without being sure."""


def bisect(
    bisection: Bisection,
    tests: Tests,
    clock: Clock,
    *,
    sure: float = SURE,
    at_once: int = 1,
    max_runs: int,
    seconds: float,
    told: Callable[[Answered, Bisection], object] = lambda *_: None,
) -> Bisected:
    """Test commits until one is sure.

    Args:
        bisection: what is known beforehand.
        at_once: tests that run together.
        max_runs: tests at most.
        seconds: after which no more are begun.
        told: hears of each test.

    Raises `SettingsError` where the good or the bad commit cannot be tested. Ctrl-C ends it with what was seen until then.
    """
    began, runs = clock.monotonic(), 0
    while (found := bisection.verdict(sure)) is None:
        left = max_runs - runs
        if left <= 0:
            return Bisected(bisection=bisection, found=None, ended=f"{max_runs} tests were made")
        if clock.monotonic() - began >= seconds:
            return Bisected(bisection=bisection, found=None, ended=f"the budget of {seconds:g} s is spent")
        try:
            answers = tests.run(bisection.next_tests(min(at_once, left)))
        except NoMoreTests as error:
            return Bisected(bisection=bisection, found=None, ended=str(error))
        except KeyboardInterrupt:
            return Bisected(bisection=bisection, found=None, ended="it was ended by Ctrl-C")
        for one in answers:
            runs += 1
            bisection = _with(bisection, one)
            told(one, bisection)
    return Bisected(bisection=bisection, found=found)


def _with(bisection: Bisection, one: Answered) -> Bisection:
    if one.answer is not Answer.SKIPPED:
        return bisection.seen(one.position, failed=one.answer is Answer.FAILED)
    if one.position in (0, bisection.bad):
        end = "bad" if one.position else "good"
        raise SettingsError(f"the {end} commit cannot be tested, so that nothing can be told of it: {one.told}")
    return bisection.skip(one.position)


def sentence(ended: Bisected, commits: Sequence[Commit], *, timings: bool = False) -> str:
    """Say how a bisection ended. `timings`: a test is a comparison with the good commit, and fails where it is slower."""
    bisection, found = ended.bisection, ended.found
    runs = f"{bisection.num_runs} {'comparisons' if timings else 'runs'}"
    posterior = bisection.posterior()
    if found is None:
        likeliest = posterior.candidates(0.9)
        names = ", ".join(f"{_names(group, commits)} {100 * chance:.0f} %" for group, chance in likeliest[:5])
        more = f" and {len(likeliest) - 5} more" if len(likeliest) > 5 else ""
        return (
            f"not sure: {ended.ended} ({runs}); perhaps {names}{more}; no culprit at all {100 * posterior.none:.0f} %"
        )
    if not found.commits:
        return f"{_no_culprit(bisection, commits, timings=timings)} ({100 * found.chance:.1f} % sure, {runs})"
    told = f"introduced by {_names(found.commits, commits)} ({100 * found.chance:.1f} % sure, {runs})"
    if len(found.commits) > 1:
        told += "; all of them but the last cannot be tested, so that they cannot be told apart"
    elif commits[found.commits[0]].merge:
        digest = commits[found.commits[0]].digest[:10]
        told += f"; it is a merge: to look into its branch: dtf farm bisect $(git merge-base {digest}^1 {digest}^2) {digest}^2 -- ..."
    return told


def _names(positions: Sequence[int], commits: Sequence[Commit]) -> str:
    if len(positions) == 1:
        return commits[positions[0]].named
    return f"one of {len(positions)} commits: {', '.join(commits[position].named for position in positions)}"


def _no_culprit(bisection: Bisection, commits: Sequence[Commit], *, timings: bool) -> str:
    what = "is slower in" if timings else "fails in"
    good, bad = commits[0].digest[:10], commits[-1].digest[:10]
    counts = [
        (bisection.failed.get(end, 0), bisection.failed.get(end, 0) + bisection.passed.get(end, 0))
        for end in (0, bisection.bad)
    ]
    (failed_good, runs_good), (failed_bad, runs_bad) = counts
    if sum(bisection.failed.values()) * 2 < bisection.num_runs and not failed_bad:
        return f"the bad commit is not bad: {bad} {what} none of {runs_bad} tests"
    return (
        f"the good commit is not good: {good} {what} {failed_good} of {runs_good} tests, as the bad one, {bad}, does in "
        f"{failed_bad} of {runs_bad}"
    )
