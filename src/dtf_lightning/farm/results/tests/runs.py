"""Runs of tests as SQL sees them: which results are one, of which test, how it ended, and how far these three questions go.

A test is what its tasks are called: their name, or for tasks without one their command. A run is a task that a worker has
begun and that came to an end of its own: what was cancelled or skipped says nothing of a test. What `dtf farm blame` runs again has
another name, and is evidence, no part of the test's history.
"""

from __future__ import annotations

from dataclasses import dataclass

from dtf_lightning.farm.record.values import TaskOutcome, TaskSpecification
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.rules.inputs import InputKind, read_input

TEST = "CASE WHEN name = '' THEN array_to_string(command, ' ') ELSE name END"
"""SQL: the test that a row of `farm.results` is of."""
IS_RUN = f"outcome IN ('{TaskOutcome.COMPLETED.value}', '{TaskOutcome.FAILED.value}') AND attempt > 0"
"""SQL: whether a row is a run."""
IS_OF = "(name = $test OR (name = '' AND array_to_string(command, ' ') = $test))"
"""SQL: whether a row is of the test `$test`. The name is compared first: columns of names are short and read fast."""
ARE_OF = "(name IN (SELECT unnest($tests)) OR (name = '' AND array_to_string(command, ' ') IN (SELECT unnest($tests))))"
"""SQL: whether a row is of one of the tests `$tests`."""

RERUN = "blame: "
"""How the name of a rerun begins, before the test's."""
IS_TEST = f"NOT starts_with(name, '{RERUN}')"
"""SQL: whether a row is of a test."""

ENDS = ("passed", "failed", "timeout", "lost")
"""How a run ended. `lost`: with its worker, which says little of the test."""
CODE = (
    f"CASE WHEN outcome = '{TaskOutcome.COMPLETED.value}' THEN 0 WHEN kind = '{OutcomeKind.TIMEOUT.value}' THEN 2 "
    f"WHEN kind = '{OutcomeKind.LOST.value}' THEN 3 ELSE 1 END"
)
"""SQL: a run's end as its place in `ENDS`."""
RANK = f"recorded * 4 + ({CODE})"
"""SQL: a number by which later runs are greater, and whose rest by 4 is the end: the greatest ones say how the last runs ended
without another look at the table."""


def end_of(rank: int) -> str:
    """Return how the run of a `RANK` ended."""
    return ENDS[rank % 4]


_COMMITS = ("DTF_COMMIT", "GIT_COMMIT", "GITHUB_SHA", "CI_COMMIT_SHA", "BUILDKITE_COMMIT")
_BRANCHES = ("DTF_BRANCH", "GIT_BRANCH", "GITHUB_REF_NAME", "CI_COMMIT_REF_NAME", "BUILDKITE_BRANCH")


@dataclass(frozen=True, kw_only=True)
class Version:
    """What of a program's history was run; "" is not known."""

    commit: str = ""
    branch: str = ""

    def __str__(self) -> str:
        return " ".join(filter(None, (self.branch, self.commit[:10])))

    def is_called(self, name: str) -> bool:
        """Whether a person may mean this one: by its branch, or how its commit begins."""
        return name != "" and (name == self.branch or (len(name) >= 7 and self.commit.startswith(name)))


def version_of(asked: TaskSpecification | None) -> Version:
    """Return the version that a task ran: of its environment's variables, or of its only input from git."""
    if asked is None:
        return Version()
    environment = asked.environment
    commit = next((environment[name] for name in _COMMITS if environment.get(name)), "")
    branch = next((environment[name] for name in _BRANCHES if environment.get(name)), "")
    commits = {told.commit for told in map(read_input, asked.inputs.values()) if told.kind is InputKind.GIT}
    if not commit and len(commits) == 1:
        (commit,) = commits
    return Version(commit=commit, branch=branch)
