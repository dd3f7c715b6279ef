"""Which commit brought a failure that shows only sometimes: a binary search by Bayes' rule, for tests whose answers are noisy.

Commits stand in a row, the first is good and the last is bad. One of them, the culprit, changed how often the test fails: before it at
a low rate, from it on at a higher one; neither is known, and both are learned with it. Each next test is at the commit where
it is expected to tell the most about the culprit (Lindley 1956; for known rates this is the probabilistic bisection of
Horstein 1963), until one commit is sure, or the budget is spent.

Rules that this file guards:
- No single answer excludes a commit: a pass may be luck, also at a bad commit.
- That there is no culprit is a hypothesis of its own: the test fails as often at the good commit as at the bad one.
- A commit that cannot be tested is no answer. Its share goes to the next one that can be: they cannot be told apart.
- Both ends are tested before anything is told.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from dtf_lightning.errors import SettingsError

Floats = npt.NDArray[np.float64]

SURE = 0.97
MAX_BATCH = 6
"""Tests that are chosen together; for more, the possible answers are too many to look at."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """How often the test may fail, each with its weight."""

    pairs: tuple[tuple[float, float, float], ...]
    """(before the culprit, from it on, weight)."""
    alone: tuple[tuple[float, float], ...]
    """(everywhere, weight), if there is no culprit."""
    none: float
    """Chance, beforehand, that there is no culprit."""


def _failures() -> Rates:
    """A test that mostly passes before, and afterwards fails at any rate, often always."""
    before = {0.002: 0.4, 0.015: 0.15, 0.035: 0.12, 0.06: 0.1, 0.1: 0.1, 0.2: 0.07, 0.4: 0.06}
    after = {
        0.05: 0.04, 0.1: 0.07, 0.2: 0.13, 0.3: 0.1, 0.45: 0.1, 0.6: 0.08, 0.75: 0.08, 0.9: 0.08, 0.97: 0.08, 0.998: 0.24,
    }  # fmt: skip
    pairs = tuple(
        (low, high, weight * share)
        for (low, weight), (high, share) in itertools.product(before.items(), after.items())
        if high - low >= 0.04 and high >= 1.5 * low
    )
    alone = {0.002: 0.4, 0.05: 0.1, 0.1: 0.1, 0.2: 0.1, 0.35: 0.07, 0.5: 0.06, 0.75: 0.05, 0.9: 0.04, 0.998: 0.08}
    return Rates(pairs=pairs, alone=tuple(alone.items()), none=0.05)


def _votes() -> Rates:
    """Comparisons whose noise goes both ways: those before the culprit say "slower" as seldom as those from it on "not slower"."""
    wrong = {0.005: 0.3, 0.03: 0.2, 0.08: 0.2, 0.15: 0.13, 0.25: 0.1, 0.35: 0.07}
    pairs = tuple(
        (low, 1 - high, weight * share)
        for (low, weight), (high, share) in itertools.product(wrong.items(), wrong.items())
    )
    return Rates(
        pairs=pairs,
        alone=((0.01, 0.3), (0.1, 0.2), (0.3, 0.1), (0.5, 0.1), (0.7, 0.1), (0.9, 0.1), (0.99, 0.1)),
        none=0.02,
    )


FAILURES = _failures()
VOTES = _votes()


@dataclass(frozen=True, kw_only=True)
class Bisection:
    """What is known. Positions are those of commits: 0 is the good one, `len(weights)` the bad one."""

    weights: tuple[float, ...]
    """Of the commits after the good one, in order: how likely each is the culprit beforehand, up to a factor."""
    rates: Rates = field(default_factory=lambda: FAILURES)
    passed: Mapping[int, int] = field(default_factory=dict)
    """Position -> how often its test has passed."""
    failed: Mapping[int, int] = field(default_factory=dict)
    skipped: frozenset[int] = frozenset()
    """Positions that cannot be tested."""

    def __post_init__(self) -> None:
        if not self.weights or any(not 0 < weight < np.inf for weight in self.weights):
            raise SettingsError("a bisection has one commit or more after the good one, each with a weight above 0")

    @property
    def bad(self) -> int:
        """The position of the bad commit."""
        return len(self.weights)

    @property
    def num_runs(self) -> int:
        """Tests so far, without those that could not be made."""
        return sum(self.passed.values()) + sum(self.failed.values())

    def seen(self, position: int, *, failed: bool) -> Bisection:
        """Return what is known with one more answer."""
        counts = dict(self.failed if failed else self.passed)
        counts[position] = counts.get(position, 0) + 1
        return replace(self, failed=counts) if failed else replace(self, passed=counts)

    def skip(self, position: int) -> Bisection:
        """Return what is known when a commit cannot be tested. Raises `SettingsError` for the good and the bad one."""
        if position in (0, self.bad):
            raise SettingsError(f"the {'bad' if position else 'good'} commit cannot be tested: name another one")
        return replace(self, skipped=self.skipped | {position})

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """Commits that cannot be told apart, each with the one behind it that can be tested as its last."""
        groups: list[tuple[int, ...]] = []
        group: list[int] = []
        for position in range(1, self.bad + 1):
            group.append(position)
            if position not in self.skipped:
                groups.append(tuple(group))
                group = []
        return groups

    def posterior(self) -> Posterior:
        """Weigh everything that was seen."""
        groups = self.groups
        places = [0, *(group[-1] for group in groups)]
        failed = np.array([self.failed.get(place, 0) for place in places], dtype=np.float64)
        passed = np.array([self.passed.get(place, 0) for place in places], dtype=np.float64)
        # Row j: answers at places before the one at which group j begins to show, and those from it on.
        failed_before, passed_before = np.cumsum(failed)[:-1, None], np.cumsum(passed)[:-1, None]
        low, high, share = np.array(self.rates.pairs).T
        likelihood = (
            failed_before * np.log(low) + passed_before * np.log1p(-low)
            + (failed.sum() - failed_before) * np.log(high) + (passed.sum() - passed_before) * np.log1p(-high)
        )  # fmt: skip
        prior = np.array([sum(self.weights[place - 1] for place in group) for group in groups])
        logs = (
            likelihood + np.log(share / share.sum()) + np.log(prior / prior.sum())[:, None] + np.log1p(-self.rates.none)
        )
        alone, alone_share = np.array(self.rates.alone).T
        logs_none = (
            failed.sum() * np.log(alone) + passed.sum() * np.log1p(-alone)
            + np.log(alone_share / alone_share.sum()) + np.log(self.rates.none)
        )  # fmt: skip
        top = max(logs.max(), logs_none.max())
        weights, weights_none = np.exp(logs - top), np.exp(logs_none - top)
        total = weights.sum() + weights_none.sum()
        by_group = weights.sum(axis=1)
        safe = np.maximum(by_group, np.finfo(np.float64).tiny)
        return Posterior(
            groups=tuple(groups),
            chances=by_group / total,
            none=float(weights_none.sum() / total),
            low=weights @ low / safe,
            high=weights @ high / safe,
            alone=float(weights_none @ alone / max(weights_none.sum(), np.finfo(np.float64).tiny)),
        )

    def next_tests(self, number: int) -> list[int]:
        """Return the positions at which to test next, all at once; one may come several times.

        Args:
            number: how many, at most `MAX_BATCH`.
        """
        untested = [end for end in (self.bad, 0) if not self.passed.get(end, 0) + self.failed.get(end, 0)]
        chosen = untested[:number]
        posterior = self.posterior()
        places = [0, *(group[-1] for group in posterior.groups)]
        table = posterior.table()
        # Row: hypothesis (groups, then none); column: one outcome of all tests chosen so far, with its joint chance.
        joint = np.append(posterior.chances, posterior.none)[:, None]
        for place in chosen:
            joint = _split(joint, table[:, places.index(place)])
        while len(chosen) < min(number, MAX_BATCH):
            best = int(np.argmax(_gains(joint, table)))
            chosen.append(places[best])
            joint = _split(joint, table[:, best])
        return chosen

    def verdict(self, sure: float = SURE) -> Found | None:
        """Return what is sure; `None` while nothing is."""
        if any(not self.passed.get(end, 0) + self.failed.get(end, 0) for end in (0, self.bad)):
            return None
        posterior = self.posterior()
        best = int(np.argmax(posterior.chances))
        if posterior.none >= sure:
            return Found(commits=(), chance=posterior.none)
        if posterior.chances[best] >= sure:
            return Found(commits=posterior.groups[best], chance=float(posterior.chances[best]))
        return None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is told."""

    commits: tuple[int, ...]
    """Positions; several cannot be told apart, none: there is no culprit."""
    chance: float


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """Chances of all hypotheses, with the rates that go with each."""

    groups: tuple[tuple[int, ...], ...]
    chances: Floats
    """Of each group."""
    none: float
    low: Floats
    """Of each group: the expected rate before it."""
    high: Floats
    """From it on."""
    alone: float
    """Of none: everywhere."""

    def table(self) -> Floats:
        """Chance of a failure: row a hypothesis (the groups, then none), column a place (the good commit, then the groups' last)."""
        size = len(self.groups)
        shows = np.arange(size + 1)[None, :] > np.arange(size)[:, None]
        return np.vstack([np.where(shows, self.high[:, None], self.low[:, None]), np.full((1, size + 1), self.alone)])

    def candidates(self, share: float) -> list[tuple[tuple[int, ...], float]]:
        """Return the likeliest groups that have this share of the chance together, the likeliest first."""
        told, total = [], 0.0
        for number in np.argsort(-self.chances, kind="stable"):
            if total >= share * self.chances.sum():
                break
            told.append((self.groups[number], float(self.chances[number])))
            total += self.chances[number]
        return told


def _split(joint: Floats, chances: Floats) -> Floats:
    """Every outcome so far, with a failure and with a pass after it."""
    return np.hstack([joint * chances[:, None], joint * (1 - chances)[:, None]])


def _gains(joint: Floats, table: Floats) -> Floats:
    """Of each place, the bits about the hypothesis that a test there is expected to tell, over all outcomes so far."""
    mass = joint.sum(axis=0)
    unknown = _entropy(table.T @ joint, mass[None, :]).sum(axis=1)
    known: Floats = joint.sum(axis=1) @ _entropy(table, np.ones((1, 1)))
    return np.asarray(unknown - known)


def _entropy(part: Floats, of: Floats) -> Floats:
    """`of` times the bits of a coin that falls with chance `part / of`."""
    tiny = np.finfo(np.float64).tiny
    rest = np.maximum(of - part, 0)
    logs = part * np.log2(np.maximum(part, tiny)) + rest * np.log2(np.maximum(rest, tiny))
    return np.asarray(of * np.log2(np.maximum(of, tiny)) - logs)


def weight_of(paths: Iterable[str]) -> float:
    """Return how likely a commit is the culprit beforehand, by the files that it changes: one that changes only text seldom is."""
    names: Sequence[str] = [path.lower() for path in paths]
    only_text = bool(names) and all(
        name.endswith((".md", ".rst")) or name.startswith("docs/") or name.split("/")[-1].startswith("license")
        for name in names
    )
    return 0.1 if only_text else 1.0
