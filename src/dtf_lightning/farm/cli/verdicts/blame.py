"""`dtf farm blame`: whose fault is a failure - the code's, the test's own, the worker's, or the environment's?"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, add_json, connect
from dtf_lightning.farm.cli.tables import print_table
from dtf_lightning.farm.cli.verdicts.durations import seconds_of_option

if TYPE_CHECKING:
    from dtf_lightning.farm.client import Client
    from dtf_lightning.farm.inquiries.blaming import Inquiry
    from dtf_lightning.farm.inquiries.case import Case, Step
    from dtf_lightning.farm.inquiries.retracting import Retracted

CODE, UNDECIDED = 1, 3
"""Exit codes, beside 0 where something else than the code is to blame."""


def add_blame(actions: Commands) -> None:
    """Add the command to those of `dtf farm`."""
    blame = add_farm_command(
        actions,
        "blame",
        _blame,
        "run a failed task again where that tells the most: code, flake, worker or environment?",
    )
    blame.add_argument("task", metavar="TASK", help="a task that has failed, or ID[N] of an array")
    blame.add_argument("--budget", type=int, default=10, metavar="N", help="reruns at most (default: %(default)s)")
    blame.add_argument(
        "--base", metavar="COMMIT",
        help="of the repository here, where the test passes (default: the last run of the test that passed)",
    )  # fmt: skip
    blame.add_argument(
        "--patience", default="30m", metavar="TIME", help="for one rerun, with its waiting (default: %(default)s)"
    )
    blame.add_argument(
        "--act", action="store_true",
        help="cordon a worker that is found sick, and run again elsewhere what failed there within --since",
    )  # fmt: skip
    blame.add_argument("--since", default="24h", metavar="TIME", help="of --act (default: %(default)s)")
    add_json(blame)
    add_farm(blame)


def _blame(arguments: argparse.Namespace) -> int:
    from dtf_lightning.farm.client import named
    from dtf_lightning.farm.inquiries.blaming import FarmRuns, inquire
    from dtf_lightning.farm.inquiries.case import Case
    from dtf_lightning.farm.sources import pack_commit

    if not 0 <= arguments.budget <= 100:
        raise SettingsError(f"--budget {arguments.budget}: expected 0 to 100 reruns")
    patience = seconds_of_option(arguments.patience, "--patience")
    since = seconds_of_option(arguments.since, "--since")
    with connect(arguments) as farm:
        task = named(arguments.task)
        case = Case.of(farm.connection.ask("GET", f"/api/tasks/{quote(task, safe='')}/past"), arguments.base or "")
        source = farm.send_source(pack_commit(Path.cwd(), arguments.base)) if arguments.base else ""
        runs = FarmRuns(farm, task, case, source=source, patience=patience)
        inquiry = inquire(case, runs, arguments.budget, _say if sys.stderr.isatty() else lambda _: None)
        retracted = _act(farm, task, inquiry, since) if arguments.act else None
    if arguments.json:
        print(json.dumps(_shown(inquiry, retracted), allow_nan=False))
    else:
        print(_sentence(inquiry))
        for note in inquiry.case.notes:
            print(f"  {note}")
        print_table(
            ("CODE", "VARIABLES", "WORKER", "ENDED", "TASK"), [_row(inquiry.case, one) for one in inquiry.case.steps]
        )
        if proposal := _proposal(inquiry):
            print(proposal)
        if retracted is not None:
            print(retracted.sentence)
            for failed, again in retracted.again:
                print(f"  {failed}: again as {again}")
    return _code(inquiry)


def _act(farm: Client, task: str, inquiry: Inquiry, since: float) -> Retracted | None:
    """What is done about a sick worker. Where it may not be done, that is said; what was found stands."""
    import time

    from dtf_lightning.farm.http import FarmRefused
    from dtf_lightning.farm.inquiries.retracting import retract
    from dtf_lightning.farm.verdicts.blame import Cause

    if inquiry.case.blame.cause is not Cause.WORKER:
        return None
    try:
        return retract(farm, inquiry.case.worker, time.time() - since, [task])
    except FarmRefused as refusal:
        print(f"dtf farm blame: nothing was done about {inquiry.case.worker}: {refusal}", file=sys.stderr)
        return None


def _say(case: Case) -> None:
    chances = ", ".join(f"{cause.value} {100 * chance:.0f} %" for cause, chance in case.blame.chances.items())
    print(f"dtf farm blame: {len(case.steps)} reruns: {chances}", file=sys.stderr)


def _sentence(inquiry: Inquiry) -> str:
    told = f"{inquiry.case.test} on {inquiry.case.worker}: {inquiry.case.blame.sentence}"
    base = inquiry.case.base
    if inquiry.variables is None or base is None:
        return told
    names = ", ".join(base.changed_variables)
    if inquiry.variables:
        return f"{told}; with the variables of the last good run it passes: {names}"
    return f"{told}; it is not the task's variables ({names}): with those of the last good run it fails, too"


def _proposal(inquiry: Inquiry) -> str:
    """What may be done about a flake; it is people who do it."""
    from dtf_lightning.farm.verdicts.blame import Cause
    from dtf_lightning.farm.verdicts.rates import interval

    if inquiry.case.blame.cause is not Cause.FLAKE:
        return ""
    failed, runs = inquiry.case.runs
    low, high = interval(failed, runs)
    rate = f"it failed in {failed} of {runs} other runs (95 %: a rate between {100 * low:.0f} and {100 * high:.0f} %)"
    test = shlex.quote(inquiry.case.test)
    return f"{rate}\nto let it fail while it is mended: dtf farm quarantine add {test} --owner NAME --expires 14d --reason '{rate}'"


def _row(case: Case, step: Step) -> tuple[str, ...]:
    ended = "passed" if step.ran.failed is False else step.ran.reason or "failed"
    return (
        "the base's" if step.rerun.on_base else "as it failed",
        "the base's" if step.recorded_variables else "as it failed",
        f"{step.ran.worker or 'none'}{' (the same)' if step.ran.worker == case.worker else ''}",
        ended, step.ran.task,
    )  # fmt: skip


def _shown(inquiry: Inquiry, retracted: Retracted | None) -> dict[str, Any]:
    case, told = inquiry.case, inquiry.case.blame
    failed, runs = case.runs
    return {
        "test": case.test,
        "worker": case.worker,
        "reason": case.reason,
        "cause": told.cause.value if told.cause is not None else None,
        "chances": {cause.value: chance for cause, chance in told.chances.items()},
        "sentence": _sentence(inquiry),
        "notes": list(case.notes),
        "base": case.base.named if case.base is not None else None,
        "variables_to_blame": inquiry.variables,
        "retracted": dict(retracted.again) if retracted is not None else None,
        "failed": failed,
        "runs": runs,
        "reruns": [
            {
                "task_id": step.ran.task,
                "on_base": step.rerun.on_base,
                "recorded_variables": step.recorded_variables,
                "worker_id": step.ran.worker or None,
                "failed": step.ran.failed,
                "reason": step.ran.reason,
            }
            for step in case.steps
        ],
    }


def _code(inquiry: Inquiry) -> int:
    from dtf_lightning.farm.verdicts.blame import Cause

    cause = inquiry.case.blame.cause
    if cause is None:
        return UNDECIDED
    return CODE if cause is Cause.CODE else DONE
