"""`Report`: what came out of a job, whatever it ran: tests, tasks of a plan, comparisons. Pure.

Rule: a report passed only if its command ended well, all that was to be read was there, and nothing in it failed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """How a test or a task ended."""

    PASSED = "passed"
    FAILED = "failed"
    ERROR = "error"
    """It could not be tried: its set-up failed, its worker was lost, it was cancelled."""
    SKIPPED = "skipped"

    @property
    def bad(self) -> bool:
        """Whether it counts against the job."""
        return self in (Outcome.FAILED, Outcome.ERROR)


class State(StrEnum):
    """How the whole job ended."""

    PASSED = "passed"
    FAILED = "failed"
    UNSURE = "unsure"
    """A comparison could not tell, and nothing else is wrong."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One test, or one task."""

    name: str
    classname: str = ""
    outcome: Outcome
    seconds: float = 0.0
    message: str = ""
    """One line, why it did not pass."""
    text: str = ""
    """What is known beside."""
    file: str = ""
    """Where it failed, relative to the repository; "": not known."""
    line: int = 0
    worker: str = ""

    @property
    def title(self) -> str:
        """As people name it."""
        return f"{self.classname}.{self.name}" if self.classname else self.name


@dataclass(frozen=True, kw_only=True)
class Group:
    """Tests of one file of results, or tasks of one plan."""

    title: str
    kind: str
    """What its cases are called: `test` or `task`."""
    cases: tuple[Case, ...]

    def count(self, *outcomes: Outcome) -> int:
        """Return how many cases ended so."""
        return sum(case.outcome in outcomes for case in self.cases)


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One verdict of a comparison."""

    verdict: str
    """Its id."""
    metric: str
    state: str
    """As `verdicts.pairs.verdict.State` writes it."""
    base: str
    candidate: str
    num_pairs: int
    sentence: str

    @property
    def bad(self) -> bool:
        """Whether the candidate is slower."""
        return self.state == "slower"

    @property
    def sure(self) -> bool:
        """Whether it could tell."""
        return self.state in ("slower", "faster", "same")


@dataclass(frozen=True, kw_only=True)
class Report:
    """All of it."""

    name: str
    """Of the job."""
    ended_well: bool | None = None
    """Whether the job's command did; `None`: nobody said."""
    groups: tuple[Group, ...] = ()
    judged: tuple[Judged, ...] = ()
    problems: tuple[str, ...] = ()
    """What was to be read and could not be."""

    @property
    def state(self) -> State:
        """How it ended."""
        if self.problems or any(True for _ in self.bad()) or any(one.bad for one in self.judged):
            return State.FAILED
        if not all(one.sure for one in self.judged):
            return State.UNSURE
        return State.FAILED if self.ended_well is False else State.PASSED

    def bad(self) -> Iterator[tuple[Group, Case]]:
        """Yield what counts against the job, in its order."""
        yield from ((group, case) for group in self.groups for case in group.cases if case.outcome.bad)

    @property
    def headline(self) -> str:
        """One sentence, without the job's name."""
        told = [_counted(group) for group in self.groups]
        if self.judged:
            slower, unsure = sum(one.bad for one in self.judged), sum(not one.sure for one in self.judged)
            number = len(self.judged)
            parts = [f"{slower} slower" if slower else "", f"{unsure} could not tell" if unsure else ""]
            found = ", ".join(filter(None, parts)) or "none slower"
            told.append(f"{number} comparison{'' if number == 1 else 's'}: {found}")
        if self.problems:
            told.append(f"{len(self.problems)} of the results could not be read")
        if self.ended_well is False and not (self.judged or self.problems or any(True for _ in self.bad())):
            told.append("the command failed")
        return "; ".join(told) or ("the command ended well" if self.ended_well else "there is nothing to tell")


def _counted(group: Group) -> str:
    total, skipped = len(group.cases), group.count(Outcome.SKIPPED)
    failed = group.count(Outcome.FAILED, Outcome.ERROR)
    noun = f"{group.kind}{'' if total == 1 else 's'}"
    beside = f", {skipped} skipped" if skipped else ""
    if not total:
        return f"no {group.kind}s ran"
    if failed:
        return f"{failed} of {total} {noun} failed{beside}"
    if skipped == total:
        return f"all {total} {noun} were skipped" if total > 1 else f"the one {noun} was skipped"
    passed = total - skipped
    return f"{passed} {group.kind}{'' if passed == 1 else 's'} passed{beside}"
