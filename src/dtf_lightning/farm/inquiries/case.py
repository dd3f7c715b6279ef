"""What is known of a failure before anything is run again, and which reruns can tell more. Pure.

Rules that this file guards:
- The failure that is asked about is no evidence of its own cause; attempts after it are.
- Where a rerun ran counts, not where it was to run.
- A run that did not come to the test's own end (its worker was lost, nobody could run it) tells nothing.
- A base that is not known to have passed may lack the test: if it fails in another way, it is no base.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.verdicts.blame import (
    PRIOR,
    RERUNS,
    UNCHANGED,
    Blame,
    Cause,
    Past,
    Rerun,
    Seen,
    blame,
    next_rerun,
)

WORTH = 0.02
"""Bits: what tells less is not run."""
MAX_LOST = 2
"""Reruns that may come to no end before the inquiry gives up."""


@dataclass(frozen=True, kw_only=True)
class Base:
    """Where the test had passed, or is said to."""

    named: str
    """For people: a task, or a commit."""
    task: str = ""
    """The task that passed; "": it is a commit that was named, and nobody knows that the test passes there."""
    same_code: bool = False
    changed_variables: tuple[str, ...] = ()
    """Names of those that the failure's environment has otherwise."""


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What became of a rerun."""

    worker: str
    failed: bool | None
    """`None`: it did not come to an end of its own."""
    reason: str = ""
    task: str = ""


@dataclass(frozen=True, kw_only=True)
class Step:
    """A rerun, as it ran."""

    rerun: Rerun
    ran: Ran
    recorded_variables: bool = False
    """Whether it had the variables of the base."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A failure, and what was seen of its test."""

    test: str
    worker: str
    """Where it failed."""
    reason: str
    """Of the failure, such as "exit code 1"."""
    past: Past = field(default_factory=Past)
    base: Base | None = None
    attempts: tuple[Seen, ...] = ()
    """Of the task, after the failure."""
    steps: tuple[Step, ...] = ()
    impossible: frozenset[Rerun] = frozenset()
    notes: tuple[str, ...] = ()
    """What limits the verdict, in words."""
    lost: int = 0
    """Reruns that came to no end of their own."""

    @classmethod
    def of(cls, told: Mapping[str, Any], named_base: str = "") -> Case:
        """Read what the farm tells of a task (`task.past`). `named_base`: a commit that takes the place of the last good run.

        Raises `SettingsError` where no attempt has failed by itself.
        """
        attempts = [(str(one["worker_id"]), bool(one["failed"]), str(one["reason"])) for one in told["attempts"]]
        first = next((at for at, (_, failed, _) in enumerate(attempts) if failed), None)
        if first is None:
            raise SettingsError(
                f"no attempt at task {told['task_id']} has failed by itself: there is nobody to blame"
                + ("" if attempts else " (what a lost worker or a cancellation has ended tells nothing of the test)")
            )
        worker, _, reason = attempts[first]
        if named_base and not told["has_code"]:
            raise SettingsError("this task's code lies on its workers: it cannot be run with that of another commit")
        found = told["base"]
        base = None
        if named_base:
            base = Base(named=named_base)
        elif found is not None:
            base = Base(
                named=f"task {found['task_id']} ({found['create_time']})",
                task=str(found["task_id"]),
                same_code=bool(found["same_code"]),
                changed_variables=tuple(found["changed_variables"]),
            )
        notes = []
        if base is None:
            notes.append(
                "no earlier run of this test is known that passed and whose code is here"
                if told["has_code"]
                else "the code lies on the workers, so that it cannot be exchanged"
            )
            notes.append("code and environment cannot be told apart")
        elif base.same_code:
            notes.append(f"the same code passed as {base.named}")
        return cls(
            test=str(told["name"]),
            worker=worker,
            reason=reason,
            past=Past(passed=int(told["passed"]), failed=int(told["failed"])),
            base=base,
            attempts=tuple(
                Seen(rerun=Rerun(on_base=False, elsewhere=where != worker), failed=failed)
                for where, failed, _ in attempts[first + 1 :]
            ),
            notes=tuple(notes),
        )

    @property
    def seen(self) -> tuple[Seen, ...]:
        """All that counts as evidence."""
        reran = [
            Seen(rerun=step.rerun, failed=step.ran.failed)
            for step in self.steps
            if step.ran.failed is not None and not step.recorded_variables and step.rerun not in self._no_base
        ]
        return (*self.attempts, *reran)

    @property
    def _no_base(self) -> frozenset[Rerun]:
        """Reruns on the base, where it has turned out to be none."""
        return frozenset(rerun for rerun in RERUNS if rerun.on_base) if self.base is None else frozenset()

    @property
    def prior(self) -> Mapping[Cause, float]:
        """Of the causes, before any rerun."""
        return UNCHANGED if self.base is not None and self.base.same_code else PRIOR

    @property
    def blame(self) -> Blame:
        """What is told now."""
        return blame(self.seen, self.prior, past=self.past)

    def next(self, *, here: bool, elsewhere: bool, left: int) -> Rerun | None:
        """Return the rerun that tells the most; `None` if there is nothing more to learn.

        Args:
            here: whether the worker of the failure takes tasks.
            elsewhere: whether another one does.
            left: reruns that may still be made.
        """
        if self.lost >= MAX_LOST or left <= 0:
            return None
        costs = {
            rerun: 1.0
            for rerun in RERUNS
            if rerun not in self.impossible
            and (elsewhere if rerun.elsewhere else here)
            and not (rerun.on_base and (self.base is None or self.base.same_code))
        }
        if not costs:
            return None
        spent = sum(costs.get(one.rerun, 0.0) for one in self.seen)
        return next_rerun(self.seen, self.prior, past=self.past, costs=costs, budget=spent + left, worth=WORTH)

    def after(self, wanted: Rerun, ran: Ran) -> Case:
        """Return the case with what a rerun gave."""
        was = Rerun(on_base=wanted.on_base, elsewhere=ran.worker != self.worker)
        case = replace(self, steps=(*self.steps, Step(rerun=was if ran.worker else wanted, ran=ran)))
        if ran.failed is None:
            case = replace(case, lost=self.lost + 1)
            return case.noting(f"a rerun came to no end of its own: {ran.reason}") if case.lost >= MAX_LOST else case
        if was != wanted:
            gone = frozenset(rerun for rerun in RERUNS if rerun.elsewhere == wanted.elsewhere)
            where = "no other worker" if wanted.elsewhere else f"{self.worker} did not take it: no rerun"
            case = replace(case, impossible=self.impossible | gone).noting(f"{where} ran it where it was to run")
        if wanted.on_base and ran.failed and self.base is not None and not self.base.task and ran.reason != self.reason:
            case = replace(case, base=None).noting(
                f"on {self.base.named} it fails in another way ({ran.reason}, not {self.reason}): perhaps the test is not there"
            )
        return case

    def noting(self, note: str) -> Case:
        """Return the case with one more thing to tell, once."""
        return self if note in self.notes else replace(self, notes=(*self.notes, note))

    @property
    def runs(self) -> tuple[int, int]:
        """How often the test failed, of how many runs, beside the failure that is asked about: of a flake, its rate."""
        reruns = self.seen
        failed = sum(one.failed for one in reruns) + self.past.failed
        return failed, len(reruns) + self.past.passed + self.past.failed
