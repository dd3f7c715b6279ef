"""`dtf farm bisect`: which commit made it slower, or made it fail?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, add_json, connect, needs_of
from dtf_lightning.farm.cli.tables import print_table
from dtf_lightning.farm.cli.verdicts.durations import seconds_of_option

if TYPE_CHECKING:
    from dtf_lightning.farm.compare.session import Compared
    from dtf_lightning.farm.inquiries.bisecting import Answered, Bisected, Tests
    from dtf_lightning.farm.inquiries.commits import Commit
    from dtf_lightning.farm.inquiries.tests_here import TimingsHere
    from dtf_lightning.farm.inquiries.tests_on_farm import TimingsOnFarm
    from dtf_lightning.farm.verdicts.bisection import Bisection

NO_CULPRIT, UNDECIDED = 1, 3
"""Exit codes, beside 0 for a commit that was found and 2 for bad input."""
SHOWN = 20
"""Rows of the table at most."""
_USAGE = "expected two commits and a command, as in: dtf farm bisect v1.2 main -- python bench.py"


def add_bisect(actions: Commands) -> None:
    """Add the command to those of `dtf farm`."""
    bisect = add_farm_command(
        actions, "bisect", _bisect, "which commit between a good and a bad one made a command slower, or made it fail?"
    )
    bisect.add_argument(
        "words",
        nargs=argparse.REMAINDER,
        metavar="GOOD BAD -- COMMAND",
        help="two commits, branches or tags, and what to run",
    )
    _add_options(bisect)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--flaky", action="store_true",
        help="look for what made the command fail, if only sometimes; 125: cannot be tested (default: what made it slower)",
    )  # fmt: skip
    parser.add_argument(
        "--metric", default="time", metavar="NAME:UNIT", help="of timings, as for compare (default: %(default)s)"
    )
    parser.add_argument("--setup", metavar="COMMAND", help="is run once in each commit before, to build it")
    parser.add_argument(
        "--sure", type=float, default=97.0, metavar="PERCENT", help="of the commit that is told (default: %(default)s)"
    )
    parser.add_argument("--runs", type=int, default=300, metavar="N", help="tests at most (default: %(default)s)")
    parser.add_argument("--budget", default="1h", metavar="TIME", help="for all of it (default: %(default)s)")
    parser.add_argument(
        "--timeout", default="10m", metavar="TIME", help="of one run, and of the setup (default: %(default)s)"
    )
    parser.add_argument("--on-farm", action="store_true", help="test on the farm's workers, several commits at once")
    parser.add_argument(
        "--parallel",
        type=int,
        default=4,
        metavar="N",
        help="on a farm: tests at once, 6 at most (default: %(default)s)",
    )
    parser.add_argument(
        "--needs", action="append", default=[], metavar="RESOURCE=AMOUNT", help="of the workers, as for run"
    )
    parser.add_argument(
        "--label", action="append", default=[], metavar="LABEL", help="that they must carry; several times"
    )
    add_farm(parser)
    add_json(parser)


def _bisect(arguments: argparse.Namespace) -> int:
    from dtf_lightning.farm.inquiries.bisecting import sentence
    from dtf_lightning.farm.inquiries.commits import commits_between

    good, bad, command = _read(arguments)
    _check(arguments)
    commits = commits_between(Path.cwd(), good, bad)
    ended, confirmed = (_on_farm if arguments.on_farm else _here)(arguments, commits, command)
    if ended is None:
        assert confirmed is not None
        return _not_slower(arguments, commits, confirmed)
    told = sentence(ended, commits, timings=not arguments.flaky)
    if arguments.json:
        print(json.dumps(_shown(ended, commits, told)))
    else:
        print(told)
        print_table(
            ("COMMIT", "CHANCE", "FAILED" if arguments.flaky else "SLOWER", "TESTS", "SUBJECT"), _rows(ended, commits)
        )
    if ended.found is None:
        return UNDECIDED
    return DONE if ended.found.commits else NO_CULPRIT


def _read(arguments: argparse.Namespace) -> tuple[str, str, list[str]]:
    """The commits and the command behind --; options that stand between them are put into `arguments`."""
    words: list[str] = arguments.words
    at = words.index("--") if "--" in words else len(words)
    command = words[at + 1 :]
    parser = argparse.ArgumentParser(prog="dtf farm bisect", add_help=False, exit_on_error=False)
    _add_options(parser)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    parser.add_argument("commits", nargs="*")
    try:
        told, unknown = parser.parse_known_args(words[:at])
    except argparse.ArgumentError as error:
        raise SettingsError(f"{error}") from error
    if unknown or len(told.commits) != 2 or not command:
        raise SettingsError(f"got {' '.join(unknown or words) or 'nothing to bisect'}; {_USAGE}")
    for name, value in vars(told).items():
        setattr(arguments, name, value)
    return told.commits[0], told.commits[1], command


def _check(arguments: argparse.Namespace) -> None:
    from dtf_lightning.farm.verdicts.bisection import MAX_BATCH

    if not 60 <= arguments.sure < 100:
        raise SettingsError(f"--sure {arguments.sure:g}: expected 60 or more percent, and less than 100")
    for option, value, most in (("--runs", arguments.runs, 100_000), ("--parallel", arguments.parallel, MAX_BATCH)):
        if not 1 <= value <= most:
            raise SettingsError(f"{option} {value}: expected 1 to {most}")


_Ended = tuple["Bisected | None", "Compared | None"]
"""The bisection, and where timings are not told slower to begin with, that comparison instead."""


def _here(arguments: argparse.Namespace, commits: Sequence[Commit], command: Sequence[str]) -> _Ended:
    from dtf_lightning.clock import SystemClock
    from dtf_lightning.farm.compare.programs import Checkouts
    from dtf_lightning.farm.inquiries.tests_here import FailuresHere, TimingsHere
    from dtf_lightning.farm.verdicts.metrics import Metric

    timeout = seconds_of_option(arguments.timeout, "--timeout")
    with Checkouts(Path.cwd(), setup=arguments.setup, patience=timeout) as checkouts:
        if arguments.flaky:
            return _search(arguments, commits, FailuresHere(checkouts, commits, command, timeout=timeout), 1), None
        metric = Metric.parse(arguments.metric)
        return _timings(
            arguments, commits, TimingsHere(checkouts, commits, command, metric, SystemClock(), timeout=timeout), 1
        )


def _on_farm(arguments: argparse.Namespace, commits: Sequence[Commit], command: Sequence[str]) -> _Ended:
    from dtf_lightning.farm.inquiries.tests_on_farm import FailuresOnFarm, OnFarm, TimingsOnFarm
    from dtf_lightning.farm.verdicts.metrics import Metric

    timeout = seconds_of_option(arguments.timeout, "--timeout")
    # Of one task: a run with its setup; of timings all of a comparison.
    whole = 2 * timeout if arguments.flaky else seconds_of_option(arguments.budget, "--budget") + 2 * timeout
    with connect(arguments) as farm:
        common = OnFarm(
            farm=farm, folder=Path.cwd(), commits=commits, command=command, setup=arguments.setup or "", timeout=whole,
            needs=needs_of(arguments),
        )  # fmt: skip
        if arguments.flaky:
            return _search(arguments, commits, FailuresOnFarm(common), arguments.parallel), None
        tests = TimingsOnFarm(common, Metric.parse(arguments.metric), arguments.metric, run_timeout=timeout)
        return _timings(arguments, commits, tests, arguments.parallel)


def _timings(
    arguments: argparse.Namespace, commits: Sequence[Commit], tests: TimingsHere | TimingsOnFarm, at_once: int
) -> _Ended:
    from dtf_lightning.farm.compare.measuring import RunFailed
    from dtf_lightning.farm.verdicts.pairs.plan import Plan
    from dtf_lightning.farm.verdicts.pairs.verdict import State

    try:
        confirmed = tests.confirm(Plan(), seconds=seconds_of_option(arguments.budget, "--budget"))
    except RunFailed as error:
        raise SettingsError(f"the good or the bad commit cannot be timed: {error}") from error
    if confirmed.verdict.state is not State.SLOWER:
        return None, confirmed
    return _search(arguments, commits, tests, at_once), confirmed


def _search(arguments: argparse.Namespace, commits: Sequence[Commit], tests: Tests, at_once: int) -> Bisected:
    from dtf_lightning.clock import SystemClock
    from dtf_lightning.farm.inquiries.bisecting import bisect
    from dtf_lightning.farm.verdicts.bisection import FAILURES, VOTES, Bisection

    weights = tuple(commit.weight for commit in commits[1:])
    bisection = Bisection(weights=weights, rates=FAILURES if arguments.flaky else VOTES)
    if not arguments.flaky:
        bisection = bisection.seen(bisection.bad, failed=True)  # it was compared, until it was sure
    return bisect(
        bisection, tests, SystemClock(),
        sure=arguments.sure / 100, at_once=at_once, max_runs=arguments.runs,
        seconds=seconds_of_option(arguments.budget, "--budget"),
        told=_saying(commits) if sys.stderr.isatty() else lambda *_: None,
    )  # fmt: skip


def _saying(commits: Sequence[Commit]) -> Callable[[Answered, Bisection], None]:
    def say(one: Answered, bisection: Bisection) -> None:
        group, chance = bisection.posterior().candidates(0.01)[0]
        likeliest = commits[group[-1]].digest[:10]
        print(
            f"dtf farm bisect: {commits[one.position].digest[:10]} {one.answer.value} {one.told}; likeliest {likeliest} "
            f"({100 * chance:.0f} %)",
            file=sys.stderr,
        )

    return say


def _not_slower(arguments: argparse.Namespace, commits: Sequence[Commit], confirmed: Compared) -> int:
    """The bad commit is not slower, as far as can be told: there is nothing to look for."""
    from dtf_lightning.farm.verdicts.pairs.sentence import sentence
    from dtf_lightning.farm.verdicts.pairs.verdict import State

    decided = confirmed.verdict.state in (State.SAME, State.FASTER)
    told = (
        f"{'the bad commit is not bad' if decided else 'not sure whether the bad commit is bad'}: {commits[-1].digest[:10]} "
        f"against {commits[0].digest[:10]}: {sentence(confirmed.comparison, confirmed.verdict)}"
    )
    print(json.dumps({"sentence": told, "culprit": None}) if arguments.json else told)
    return NO_CULPRIT if decided else UNDECIDED


def _rows(ended: Bisected, commits: Sequence[Commit]) -> list[tuple[str, ...]]:
    """What was tested, and what may be the culprit, in the order of the commits."""
    bisection, posterior = ended.bisection, ended.bisection.posterior()
    chances = {group[-1]: chance for group, chance in zip(posterior.groups, posterior.chances, strict=True)}
    runs = {at: bisection.failed.get(at, 0) + bisection.passed.get(at, 0) for at in range(len(commits))}
    wanted = {at for at, number in runs.items() if number} | {
        place for group, _ in posterior.candidates(0.99) for place in group
    }
    nearest = sorted(sorted(wanted, key=lambda at: -chances.get(at, 0.0))[:SHOWN])
    return [
        (
            commits[at].digest[:10],
            f"{100 * chances[at]:.1f} %" if at in chances else "",
            str(bisection.failed.get(at, 0)),
            "cannot" if at in bisection.skipped else str(runs[at]),
            commits[at].subject,
        )
        for at in nearest
    ]


def _shown(ended: Bisected, commits: Sequence[Commit], told: str) -> dict[str, Any]:
    bisection, posterior = ended.bisection, ended.bisection.posterior()
    return {
        "sentence": told,
        "culprit": [commits[at].digest for at in ended.found.commits] if ended.found is not None else None,
        "chance": ended.found.chance if ended.found is not None else None,
        "no_culprit": posterior.none,
        "candidates": [
            {"commits": [commits[at].digest for at in group], "chance": chance}
            for group, chance in posterior.candidates(0.99)
        ],
        "tests": [
            {
                "commit": commits[at].digest,
                "failed": bisection.failed.get(at, 0),
                "passed": bisection.passed.get(at, 0),
                "skipped": at in bisection.skipped,
            }
            for at in range(len(commits))
            if at in bisection.skipped or bisection.failed.get(at, 0) + bisection.passed.get(at, 0)
        ],
    }
