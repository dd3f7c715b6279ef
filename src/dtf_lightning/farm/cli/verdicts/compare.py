"""`dtf farm compare`: is the candidate slower than the base? And `dtf farm verdict`: the verdicts that are kept here."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, add_json, connect, needs_of
from dtf_lightning.farm.cli.tables import print_table
from dtf_lightning.farm.cli.verdicts.durations import seconds_of_option

if TYPE_CHECKING:
    from dtf_lightning.farm.compare.book import Kept
    from dtf_lightning.farm.compare.programs import Program
    from dtf_lightning.farm.compare.session import Compared, Outcome
    from dtf_lightning.farm.verdicts.metrics import Metric
    from dtf_lightning.farm.verdicts.pairs.plan import Plan

SLOWER, UNDECIDED = 1, 3
"""Exit codes, beside 0 for the same or faster and 2 for bad input."""
_BOOK = "verdicts.duckdb"
_USAGE = 'expected two commands, as in: dtf farm compare "python a.py" "python b.py"; or two commits: dtf farm compare main mine -- python bench.py'


def add_compare(actions: Commands) -> None:
    """Add the commands to those of `dtf farm`."""
    compare = add_farm_command(
        actions,
        "compare",
        _compare,
        "is the second of two commands, or commits, slower than the first? Pairs until it is sure",
    )
    compare.add_argument(
        "words", nargs=argparse.REMAINDER, metavar="BASE CANDIDATE [-- COMMAND]",
        help="two commands; or two commits, branches or tags, and the command to run in each",
    )  # fmt: skip
    _add_options(compare)

    verdict = actions.add_parser("verdict", help="verdicts of `dtf farm compare` that are kept on this machine")
    kinds = verdict.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_json(add_farm_command(kinds, "list", _list, "the newest verdicts"))
    replay = add_farm_command(kinds, "replay", _replay, "recompute a verdict from its samples, and compare every bit")
    replay.add_argument("verdict", metavar="ID", help="or its beginning")
    add_json(replay)


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--metric", action="append", default=[], metavar="NAME:UNIT",
        help="time (s, the default), cpu (s), or what the programs report, such as latency:ms or items:1/s:higher; several times",
    )  # fmt: skip
    parser.add_argument(
        "--budget", default="5m", metavar="TIME", help="for all runs, such as 60s (default: %(default)s)"
    )
    parser.add_argument("--pairs", type=int, default=200, metavar="N", help="at most (default: %(default)s)")
    parser.add_argument(
        "--delta",
        type=float,
        default=3.0,
        metavar="PERCENT",
        help="the smallest change that matters (default: %(default)s)",
    )
    parser.add_argument(
        "--alpha", type=float, default=1.0, metavar="PERCENT",
        help="how often equal programs may be told slower or faster (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--confidence", type=float, default=95.0, metavar="PERCENT", help="of `the same` (default: %(default)s)"
    )
    parser.add_argument(
        "--timeout", default="10m", metavar="TIME", help="of one run, and of the setup (default: %(default)s)"
    )
    parser.add_argument(
        "--warm-up", type=int, default=1, metavar="N", help="runs of each that do not count (default: %(default)s)"
    )
    parser.add_argument("--setup", metavar="COMMAND", help="of commits: is run once in each before, to build it")
    parser.add_argument(
        "--on-farm",
        action="store_true",
        help="run two commands, with this folder's files, on a worker that does nothing else meanwhile",
    )
    parser.add_argument(
        "--needs", action="append", default=[], metavar="RESOURCE=AMOUNT", help="of that worker, as for run"
    )
    parser.add_argument(
        "--label", action="append", default=[], metavar="LABEL", help="that it must carry; several times"
    )
    add_farm(parser)
    add_json(parser)


def _compare(arguments: argparse.Namespace) -> int:
    base, candidate, command = _read(arguments)
    wanted = _wanted(arguments)
    measure = _on_farm if arguments.on_farm else _here
    kept = measure(arguments, wanted, base, candidate, command)
    _keep(kept)
    if arguments.json:
        from dtf_lightning.farm.compare.on_farm import shown

        print(json.dumps({"verdicts": [shown(one) for one in kept]}, allow_nan=False))
    else:
        for one in kept:
            print(one.sentence)
        print_table(("METRIC", "VERDICT", "BASE", "CANDIDATE", "CHANGE", "PAIRS", "ID"), [_row(one) for one in kept])
    return _code([one.compared for one in kept])


@dataclass(frozen=True, kw_only=True)
class _Wanted:
    metrics: list[Metric]
    plan: Plan
    budget: float
    timeout: float
    warm_up: int


def _wanted(arguments: argparse.Namespace) -> _Wanted:
    """What the options say, checked. Raises `SettingsError`."""
    from dtf_lightning.farm.verdicts.metrics import Metric
    from dtf_lightning.farm.verdicts.pairs.plan import Plan

    metrics = [Metric.parse(text) for text in arguments.metric or ["time"]]
    if len({metric.name for metric in metrics}) != len(metrics):
        raise SettingsError("a metric is asked for twice")
    if arguments.warm_up < 0:
        raise SettingsError(f"--warm-up {arguments.warm_up}: expected 0 or more runs")
    return _Wanted(
        metrics=metrics,
        plan=Plan(
            delta=arguments.delta / 100,
            alpha=arguments.alpha / 100,
            confidence=arguments.confidence / 100,
            max_pairs=arguments.pairs,
        ),
        budget=seconds_of_option(arguments.budget, "--budget"),
        timeout=seconds_of_option(arguments.timeout, "--timeout"),
        warm_up=arguments.warm_up,
    )


def _here(
    arguments: argparse.Namespace, wanted: _Wanted, base: str, candidate: str, command: Sequence[str]
) -> list[Kept]:
    from dtf_lightning.farm.compare.measuring import RunFailed

    with _programs(base, candidate, command, arguments.setup, wanted.timeout) as programs:
        try:
            outcome = _measure(programs, wanted)
        except RunFailed as error:
            raise SettingsError(f"there is nothing to compare: {error}") from error
    return _made(outcome, programs[0].named, programs[1].named)


def _on_farm(
    arguments: argparse.Namespace, wanted: _Wanted, base: str, candidate: str, command: Sequence[str]
) -> list[Kept]:
    from dtf_lightning.farm.compare.on_farm import compare_on_farm

    if command:
        raise SettingsError("--on-farm compares two commands; two commits are compared here, where the repository is")
    names = ("budget", "pairs", "delta", "alpha", "confidence", "timeout", "warm_up")
    options = [f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in names]
    options += [f"--metric={text}" for text in arguments.metric]
    timeout = wanted.budget + 2 * (wanted.warm_up + 1) * wanted.timeout  # warm-up and the pair that is under way
    with connect(arguments) as farm:
        return compare_on_farm(farm, [*options, base, candidate], needs_of(arguments), Path.cwd(), timeout=timeout)


def _read(arguments: argparse.Namespace) -> tuple[str, str, list[str]]:
    """The two sides and the command behind --; options that stand between them are put into `arguments`."""
    words: list[str] = arguments.words
    at = words.index("--") if "--" in words else len(words)
    command = words[at + 1 :]
    if at < len(words) and not command:
        raise SettingsError(f"there is no command behind --; {_USAGE}")
    parser = argparse.ArgumentParser(prog="dtf farm compare", add_help=False, exit_on_error=False)
    _add_options(parser)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    parser.add_argument("sides", nargs="*")
    try:
        told, unknown = parser.parse_known_args(words[:at])
    except argparse.ArgumentError as error:
        raise SettingsError(f"{error}") from error
    if unknown or len(told.sides) != 2:
        raise SettingsError(f"got {' '.join(unknown or told.sides) or 'nothing to compare'}; {_USAGE}")
    for name, value in vars(told).items():
        setattr(arguments, name, value)
    if arguments.setup is not None and not command:
        raise SettingsError("--setup builds two commits; two commands are run as they are")
    return told.sides[0], told.sides[1], command


@contextlib.contextmanager
def _programs(
    base: str, candidate: str, command: Sequence[str], setup: str | None, patience: float
) -> Iterator[tuple[Program, Program]]:
    from dtf_lightning.farm.compare.programs import two_commands, two_commits

    if command:
        with two_commits(base, candidate, command, Path.cwd(), setup=setup, patience=patience) as programs:
            yield programs
    else:
        yield two_commands(base, candidate, Path.cwd())


def _measure(programs: tuple[Program, Program], wanted: _Wanted) -> Outcome:
    import secrets

    from dtf_lightning.clock import SystemClock
    from dtf_lightning.farm.compare.measuring import run_once
    from dtf_lightning.farm.compare.session import compare
    from dtf_lightning.farm.verdicts.pairs.plan import Side

    by_side = dict(zip((Side.BASE, Side.CANDIDATE), programs, strict=True))
    return compare(
        lambda side: run_once(by_side[side], timeout=wanted.timeout),
        wanted.metrics,
        wanted.plan,
        seed=secrets.token_hex(16),
        budget=wanted.budget,
        clock=SystemClock(),
        warm_up=wanted.warm_up,
        told=_say if sys.stderr.isatty() else lambda _: None,
    )


def _say(text: str) -> None:
    print(f"dtf farm compare: {text}", file=sys.stderr)


def _made(outcome: Outcome, base: str, candidate: str) -> list[Kept]:
    import platform
    import time

    from dtf_lightning.farm.compare.book import Kept
    from dtf_lightning.farm.record.task_id import new_task_id
    from dtf_lightning.farm.verdicts.pairs.sentence import sentence

    made = time.time()
    machine = {"name": platform.node(), "system": platform.platform(), "python": platform.python_version()}
    return [
        Kept(
            verdict=new_task_id(made),
            made=made,
            base=base,
            candidate=candidate,
            machine=json.dumps(machine),
            sentence=sentence(one.comparison, one.verdict, outcome.seconds),
            compared=one,
        )
        for one in outcome.compared
    ]


def _keep(kept: Sequence[Kept]) -> None:
    from dtf_lightning.farm.compare.book import VerdictBook
    from dtf_lightning.farm.home import FarmHome

    with VerdictBook(FarmHome.default().folder / _BOOK) as book:
        for one in kept:
            book.keep(one)


def _row(kept: Kept) -> tuple[str, ...]:
    from statistics import median

    from dtf_lightning.farm.verdicts.pairs.plan import Side
    from dtf_lightning.farm.verdicts.series import percent

    comparison, verdict = kept.compared.comparison, kept.compared.verdict

    def middle(side: Side) -> str:
        values = [sample.value for sample in comparison.samples if sample.side is side]
        return f"{median(values):.4g} {comparison.unit}" if values else ""

    change = f"{percent(verdict.look.estimate):+.1f} %" if verdict.look else ""
    return (
        comparison.metric, verdict.state.value, middle(Side.BASE), middle(Side.CANDIDATE), change,
        str(verdict.num_pairs), kept.verdict,
    )  # fmt: skip


def _code(compared: Sequence[Compared]) -> int:
    from dtf_lightning.farm.verdicts.pairs.verdict import State

    states = {one.verdict.state for one in compared}
    if State.SLOWER in states:
        return SLOWER
    return UNDECIDED if states & {State.TOO_NOISY, State.GAVE_UP} else DONE


def _list(arguments: argparse.Namespace) -> int:
    from dtf_lightning.farm.compare.book import VerdictBook
    from dtf_lightning.farm.home import FarmHome

    with VerdictBook(FarmHome.default().folder / _BOOK) as book:
        rows = book.verdicts()
    if arguments.json:
        print(json.dumps([{**row, "made": row["made"].isoformat()} for row in rows]))
    else:
        shown = [
            (row["verdict"], row["made"].isoformat(" ", "seconds"), row["base"], row["candidate"], row["sentence"])
            for row in rows
        ]
        print_table(("ID", "MADE (UTC)", "BASE", "CANDIDATE", "VERDICT"), shown)
    return DONE


def _replay(arguments: argparse.Namespace) -> int:
    from dtf_lightning.farm.compare.book import VerdictBook
    from dtf_lightning.farm.home import FarmHome

    with VerdictBook(FarmHome.default().folder / _BOOK) as book:
        comparison, verdict, sentence = book.replay(arguments.verdict)
    if arguments.json:
        print(json.dumps({"sentence": sentence, "verdict": verdict.to_json(), "comparison": comparison.to_json()}))
    else:
        print(f"{sentence}\nrecomputed from {len(comparison.samples)} samples: every bit is the same")
    return DONE
