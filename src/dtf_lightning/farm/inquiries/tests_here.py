"""Tests of a bisection on this machine, one after the other: each commit is checked out and set up when it is first tested."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from dtf_lightning.clock import Clock
from dtf_lightning.farm.compare.measuring import RunFailed, run_once
from dtf_lightning.farm.compare.processes import run_to_end
from dtf_lightning.farm.compare.programs import CannotBeBuilt, Checkouts, Program
from dtf_lightning.farm.compare.session import Compared, compare
from dtf_lightning.farm.inquiries.bisecting import Answer, Answered
from dtf_lightning.farm.inquiries.commits import Commit
from dtf_lightning.farm.verdicts.metrics import Metric
from dtf_lightning.farm.verdicts.pairs.plan import LOOKS, Plan, Side

CANNOT = 125
"""Exit code of a command that says that this commit cannot be tested, as `git bisect run` has it."""


class FailuresHere:
    """A test is one run of the command: it has failed with any exit code but 0, also if it takes too long."""

    def __init__(
        self, checkouts: Checkouts, commits: Sequence[Commit], command: Sequence[str], *, timeout: float
    ) -> None:
        self._built = _Built(checkouts, commits, command)
        self._timeout = timeout

    def run(self, positions: Sequence[int]) -> list[Answered]:
        """See `bisecting.Tests`."""
        return [self._run(position) for position in positions]

    def _run(self, position: int) -> Answered:
        try:
            program = self._built.program(position)
        except CannotBeBuilt as error:
            return Answered(position=position, answer=Answer.SKIPPED, told=str(error))
        with tempfile.TemporaryFile() as output:
            ended = run_to_end(program.command, program.folder, output=output.fileno(), timeout=self._timeout)
        if ended.failure == f"ended with exit code {CANNOT}":
            return Answered(position=position, answer=Answer.SKIPPED, told=f"the command {ended.failure}")
        if not ended.process:
            return Answered(position=position, answer=Answer.SKIPPED, told=f"the command {ended.failure}")
        return Answered(position=position, answer=Answer.FAILED if ended.failure else Answer.PASSED, told=ended.failure)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What is looked for in timings."""

    metric: Metric
    log_ratio: float
    """Between the good and the bad commit."""

    @property
    def plan(self) -> Plan:
        """Of one test."""
        return Plan(max_pairs=LOOKS[0])

    def answer(self, position: int, compared: Compared) -> Answered:
        """Return what a comparison with the good commit says: failed where it is nearer to the bad one's time."""
        look = compared.verdict.look
        if look is None:
            return Answered(position=position, answer=Answer.SKIPPED, told=compared.verdict.reason)
        slower = look.estimate > self.log_ratio / 2
        return Answered(
            position=position,
            answer=Answer.FAILED if slower else Answer.PASSED,
            told=f"{100 * look.estimate:+.1f} % (log) against the good commit",
        )


class TimingsHere:
    """A test is a comparison of a few pairs with the good commit, interleaved, from fresh processes.

    Args:
        step: what is looked for; `None` until `confirm` has found it.
    """

    def __init__(
        self,
        checkouts: Checkouts,
        commits: Sequence[Commit],
        command: Sequence[str],
        metric: Metric,
        clock: Clock,
        *,
        timeout: float,
    ) -> None:
        self._built = _Built(checkouts, commits, command)
        self._metric, self._clock, self._timeout = metric, clock, timeout
        self._last = len(commits) - 1
        self.step: Step | None = None

    def confirm(self, plan: Plan, *, seconds: float) -> Compared:
        """Compare the bad commit with the good one, until it is sure; what differs is what is looked for.

        Raises `CannotBeBuilt` and `RunFailed` for one that cannot be run, and what `compare` raises.
        """
        compared = self._compare(self._last, plan, seconds)
        if compared.verdict.look is not None:
            self.step = Step(metric=self._metric, log_ratio=compared.verdict.look.estimate)
        return compared

    def run(self, positions: Sequence[int]) -> list[Answered]:
        """See `bisecting.Tests`."""
        return [self._run(position) for position in positions]

    def _run(self, position: int) -> Answered:
        assert self.step is not None
        try:
            return self.step.answer(position, self._compare(position, self.step.plan, None))
        except (CannotBeBuilt, RunFailed) as error:
            return Answered(position=position, answer=Answer.SKIPPED, told=str(error))

    def _compare(self, position: int, plan: Plan, seconds: float | None) -> Compared:
        by_side = {Side.BASE: self._built.program(0, "base"), Side.CANDIDATE: self._built.program(position)}
        outcome = compare(
            lambda side: run_once(by_side[side], timeout=self._timeout),
            [self._metric], plan, seed=secrets.token_hex(16), budget=seconds, clock=self._clock,
        )  # fmt: skip
        return outcome.compared[0]


class _Built:
    """Commits that were checked out and set up; one that could not be is not tried again."""

    def __init__(self, checkouts: Checkouts, commits: Sequence[Commit], command: Sequence[str]) -> None:
        self._checkouts, self._commits, self._command = checkouts, commits, command
        self._programs: dict[str, Program | CannotBeBuilt] = {}

    def program(self, position: int, side: str = "") -> Program:
        """Return a commit's program. Raises `CannotBeBuilt`."""
        side = side or f"commit-{position}"
        if side not in self._programs:
            commit = self._commits[position]
            try:
                self._programs[side] = self._checkouts.program(side, commit.named, commit.digest, self._command)
            except CannotBeBuilt as error:
                self._programs[side] = error
        made = self._programs[side]
        if isinstance(made, CannotBeBuilt):
            raise made
        return made
