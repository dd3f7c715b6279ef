"""Tests of a bisection as tasks of a farm, several at once: each unpacks a commit's files, is set up, and runs the command."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dtf_lightning import environment
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.client import Client, TaskInfo
from dtf_lightning.farm.compare.on_farm import DECIDED, DTF, kept_of, verdicts_in
from dtf_lightning.farm.compare.session import Compared
from dtf_lightning.farm.inquiries.bisecting import Answer, Answered, NoMoreTests
from dtf_lightning.farm.inquiries.commits import Commit
from dtf_lightning.farm.inquiries.tests_here import CANNOT, Step
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.sources import Source, pack_commit
from dtf_lightning.farm.verdicts.metrics import Metric
from dtf_lightning.farm.verdicts.pairs.plan import Plan

_SET_UP = 'if [ -n "$1" ]; then sh -c "$1" || exit 125; fi; shift; '
_RUN = _SET_UP + 'exec "$@"'
_COMPARE = 'if [ -n "$1" ]; then (cd "$2" && sh -c "$1") || exit 125; fi; ' + _SET_UP + "shift; " + DTF
GOOD = ".dtf-good"
"""Where the good commit's files lie in the folder of a comparison."""
_OWN_END = ("failed", "timeout")
MAX_UNANSWERED = 2
"""Times that no task of a batch may come to an end of its own, before the bisection ends."""


@dataclass(frozen=True, kw_only=True)
class OnFarm:
    """What all tests have in common."""

    farm: Client
    folder: Path
    commits: Sequence[Commit]
    command: Sequence[str]
    setup: str
    timeout: float
    """Seconds of one task."""
    needs: Sequence[Mapping[str, Any]] = ()


class _Batches:
    """Submits tasks and waits for all of them."""

    def __init__(self, common: OnFarm) -> None:
        self._common = common
        self._plan = new_task_id(time.time())
        self._sources: dict[int, Source] = {}
        self._unanswered = 0

    def source(self, position: int) -> Source:
        """A commit's files, which the farm has then."""
        if position not in self._sources:
            source = pack_commit(self._common.folder, self._common.commits[position].digest)
            self._common.farm.send_source(source)
            self._sources[position] = source
        return self._sources[position]

    def run(self, tests: Sequence[tuple[int, dict[str, Any]]]) -> list[tuple[int, TaskInfo]]:
        """Run a task at each of these positions, with these fields. Ctrl-C cancels them.

        Returns those that came to an end of their own. Raises `NoMoreTests` where none did, again and again.
        """
        farm, requests = self._common.farm, []
        for position, fields in tests:
            source = self.source(position)
            requests.append(
                {
                    "task_id": new_task_id(time.time()),
                    "name": f"bisect: {self._common.commits[position].digest[:10]}",
                    "plan": self._plan,
                    "source": source.digest,
                    "folder": source.folder,
                    "timeout": self._common.timeout,
                    "needs": [dict(need) for need in self._common.needs],
                    **fields,
                }
            )
        farm.submit_all(requests)
        try:
            ended = [farm.wait(str(request["task_id"])) for request in requests]
        except KeyboardInterrupt:
            farm.cancel_plan(self._plan, "Ctrl-C")
            raise
        answered = [
            (position, info)
            for (position, _), info in zip(tests, ended, strict=True)
            if info.status == "completed" or (info.raw.get("results") or {}).get("kind") in _OWN_END
        ]
        self._unanswered = 0 if answered else self._unanswered + 1
        if self._unanswered >= MAX_UNANSWERED:
            raise NoMoreTests(f"tasks come to no end of their own ({ended[-1].task_id}: {ended[-1].reason})")
        return answered


class FailuresOnFarm:
    """A test is one run of the command."""

    def __init__(self, common: OnFarm) -> None:
        self._common = common
        self._batches = _Batches(common)

    def run(self, positions: Sequence[int]) -> list[Answered]:
        """See `bisecting.Tests`."""
        command = ["/bin/sh", "-c", _RUN, "dtf", self._common.setup, *self._common.command]
        ended = self._batches.run([(position, {"command": command}) for position in positions])
        return [_answer(position, info) for position, info in ended]


def _answer(position: int, info: TaskInfo) -> Answered:
    if info.exit_code == CANNOT:
        return Answered(
            position=position, answer=Answer.SKIPPED, told=f"its setup has failed: dtf farm logs {info.task_id}"
        )
    failed = info.status != "completed"
    return Answered(
        position=position, answer=Answer.FAILED if failed else Answer.PASSED, told=info.reason if failed else ""
    )


class TimingsOnFarm:
    """A test is a comparison with the good commit, on a worker that does nothing else meanwhile."""

    def __init__(self, common: OnFarm, metric: Metric, metric_text: str, *, run_timeout: float) -> None:
        self._common = common
        self._batches = _Batches(common)
        self._metric, self._metric_text, self._run_timeout = metric, metric_text, run_timeout
        self.step: Step | None = None

    def confirm(self, plan: Plan, *, seconds: float) -> Compared:
        """As `TimingsHere.confirm`. Raises `SettingsError` for a comparison that came to no verdict, and `NoMoreTests`."""
        last = len(self._common.commits) - 1
        words = [
            f"--delta={100 * plan.delta}", f"--alpha={100 * plan.alpha}", f"--confidence={100 * plan.confidence}",
            f"--pairs={plan.max_pairs}", f"--budget={seconds:g}s",
        ]  # fmt: skip
        ended: list[tuple[int, TaskInfo]] = []
        while not ended:
            ended = self._batches.run([(last, self._fields(words))])
        compared, tail = self._read(ended[0][1])
        if compared is None:
            raise SettingsError(f"the good and the bad commit cannot be compared on the farm; the output ends:\n{tail}")
        if compared.verdict.look is not None:
            self.step = Step(metric=self._metric, log_ratio=compared.verdict.look.estimate)
        return compared

    def run(self, positions: Sequence[int]) -> list[Answered]:
        """See `bisecting.Tests`."""
        assert self.step is not None
        words = [f"--pairs={self.step.plan.max_pairs}", f"--budget={self._common.timeout:g}s"]
        told = []
        for position, info in self._batches.run([(position, self._fields(words)) for position in positions]):
            compared, tail = self._read(info)
            if compared is None:
                told.append(Answered(position=position, answer=Answer.SKIPPED, told=tail))
            else:
                told.append(self.step.answer(position, compared))
        return told

    def _fields(self, words: Sequence[str]) -> dict[str, Any]:
        good = self._batches.source(0)
        place = f"{GOOD}/{good.folder}" if good.folder else GOOD
        line = f"exec {shlex.join(self._common.command)}"
        options = [*words, f"--metric={self._metric_text}", f"--timeout={self._run_timeout:g}s"]
        compare = ["farm", "compare", "--json", *options, f"cd {shlex.quote(place)} && {line}", line]
        return {
            "command": ["/bin/sh", "-c", _COMPARE, "dtf", self._common.setup, place, *compare],
            "inputs": {GOOD: f"tree:{good.digest}"},
            "environment": {environment.FARM_HOME: ".dtf-compare"},
            "needs": [
                {**need, "exclusive": True} for need in self._common.needs or [{"amounts": {"cpu": 1.0}, "labels": []}]
            ],
        }

    def _read(self, info: TaskInfo) -> tuple[Compared | None, str]:
        output = b"".join(self._common.farm.logs(info.task_id)).decode(errors="replace")
        found = verdicts_in(output)
        if found is None or info.exit_code not in (None, *DECIDED):
            return None, output[-1000:].strip() or info.reason
        return kept_of(found[0]).compared, ""
