"""Options that several commands of `dtf farm` share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtf_lightning.cli.main import FAILED
from dtf_lightning.cli.options import Commands, add_command
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli.exit_codes import BAD_INPUT, UNREACHABLE

if TYPE_CHECKING:
    from dtf_lightning.farm.client import Client


_BAD_REQUEST = (409, 422)
"""HTTP's codes for what cannot work as it was asked for."""


def add_farm_command(
    actions: Commands, name: str, command: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    """Add a command of `dtf farm`, with its exit codes for bad input and for a farm that does not answer."""

    def run(arguments: argparse.Namespace) -> int:
        from dtf_lightning.farm.home import FarmNotFound
        from dtf_lightning.farm.http import FarmRefused, FarmUnreachable

        try:
            return command(arguments)
        except (FarmUnreachable, FarmNotFound) as error:
            print(f"{parser.prog}: {error}", file=sys.stderr)
            return UNREACHABLE
        except SettingsError as error:
            print(f"{parser.prog}: {error}", file=sys.stderr)
            return BAD_INPUT
        except FarmRefused as error:
            print(f"{parser.prog}: {error}", file=sys.stderr)
            return BAD_INPUT if error.status in _BAD_REQUEST else FAILED

    parser = add_command(actions, name, run, text)
    return parser


def add_farm(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which farm is meant."""
    parser.add_argument(
        "--farm",
        metavar="URL",
        help="of a coordinator (default: $DTF_FARM_URL, or the farm that `dtf farm up` started here)",
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="holds the farm's token (default: $DTF_FARM_TOKEN_FILE, or that farm's)",
    )
    parser.add_argument(
        "--ca",
        type=Path,
        metavar="FILE",
        help="certificate (PEM) of the authority of an https farm (default: $DTF_FARM_CA, or those that this machine knows)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add the option for machines that read."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """Add what a task is made of."""
    parser.add_argument("command_line", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run")
    parser.add_argument("--name", dest="named", metavar="NAME", default="", help="of the task, for people")
    parser.add_argument(
        "--needs",
        action="append",
        default=[],
        metavar="RESOURCE=AMOUNT",
        help="such as gpu=1 or memory=2048 (MiB); several times (default: cpu=1)",
    )
    parser.add_argument(
        "--label", action="append", default=[], metavar="LABEL", help="that the worker must carry; several times"
    )
    parser.add_argument(
        "--gang", type=int, default=1, metavar="N", help="workers that run it together (default: %(default)s)"
    )
    parser.add_argument(
        "--array",
        type=int,
        default=0,
        metavar="N",
        help="run N instances; each finds its number in $DTF_FARM_ARRAY_INDEX",
    )
    _add_what_it_finds(parser)
    parser.add_argument(
        "--key",
        default="",
        metavar="KEY",
        help="whoever submits under the same key gets the same task; what is given to read is not forwarded",
    )
    parser.add_argument(
        "--reuse",
        action="store_true",
        help="take a result that is known for the same inputs, and run only where there is none; what is given to read is not "
        "forwarded",
    )
    _add_course_options(parser)
    parser.add_argument("--no-source", action="store_true", help="do not take this folder's files along")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse what no worker that is there could do (default: it waits, with a warning)",
    )


def _add_course_options(parser: argparse.ArgumentParser) -> None:
    """Add when a task runs, for how long and how often."""
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="of one attempt")
    parser.add_argument(
        "--retries", type=int, default=0, metavar="N", help="tries after one that failed (default: %(default)s)"
    )
    parser.add_argument("--priority", type=int, default=0, help="a higher number goes first (default: %(default)s)")
    parser.add_argument("--project", default="default", help="whose share it counts against (default: %(default)s)")
    parser.add_argument(
        "--after", action="append", default=[], metavar="ID", help="a task that must have completed; several times"
    )


def _add_what_it_finds(parser: argparse.ArgumentParser) -> None:
    """Add what a task finds when it starts."""
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="in the command's environment; several times"
    )
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME",
        help="that the farm keeps or the worker has, given as a variable; several times",
    )
    parser.add_argument(
        "--permission",
        action="append",
        default=[],
        choices=["read", "submit"],
        help="what the command may do with the farm by a token of its own: read of itself and its subtasks, submit such; several times",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="PLACE=FILE",
        help="a file or folder of here, https://...#sha256=DIGEST or git+URL@COMMIT, put at a place in the command's folder; "
        "several times",
    )


def add_plan_options(parser: argparse.ArgumentParser) -> None:
    """Add what only plans know."""
    parser.add_argument(
        "--no-wait",
        action="store_true",
        help="of a plan: print its id, and leave it to the farm (default: wait for it)",
    )
    add_json(parser)


def plan_options(path: str, words: list[str], arguments: argparse.Namespace) -> argparse.Namespace:
    """Return the options of `dtf farm run PLAN.yaml`, those behind the plan among them.

    Raises `SettingsError` for options that belong into the plan, and for words that are none.
    """
    parser = argparse.ArgumentParser(
        prog=f"dtf farm run {path}", argument_default=argparse.SUPPRESS, exit_on_error=False
    )
    parser.add_argument("--no-source", action="store_true")
    parser.add_argument("--strict", action="store_true")
    add_plan_options(parser)
    add_farm(parser)
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    try:
        told, unknown = parser.parse_known_args(words, argparse.Namespace(**vars(arguments)))
    except argparse.ArgumentError as error:
        raise SettingsError(f"behind the plan {path}: {error}") from error
    if unknown:
        raise SettingsError(
            f"{unknown[0]!r} behind the plan {path} is not known; to run {path} as a command: dtf farm run -- {path} ..."
        )
    given = [name for name in _OF_A_COMMAND if getattr(told, name) != _NOT_GIVEN.get(name, [])]
    if given:
        raise SettingsError(f"--{given[0].replace('named', 'name')} is an option of a command: write it into {path}")
    return told


_NOT_GIVEN: dict[str, Any] = {
    "named": "", "key": "", "reuse": False, "gang": 1, "array": 0, "timeout": None, "retries": 0, "priority": 0, "project": "default",
}  # fmt: skip
_OF_A_COMMAND = (
    "named",
    "needs",
    "label",
    "gang",
    "array",
    "env",
    "secret",
    "permission",
    "input",
    "key",
    "reuse",
    "timeout",
    "retries",
    "priority",
    "project",
    "after",
)


def connect(arguments: argparse.Namespace) -> Client:
    """Return a client of the farm that is meant. Raises what `Client` raises."""
    from dtf_lightning.farm.client import Client

    return Client(arguments.farm, arguments.token_file, ca=arguments.ca)


def needs_of(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what `--needs` and `--label` say, as the API takes it. Raises `SettingsError`."""
    amounts = {}
    for text in arguments.needs:
        resource, _, amount = text.partition("=")
        try:
            amounts[resource] = float(amount) if amount else 1.0
        except ValueError:
            raise SettingsError(f"--needs {text}: expected RESOURCE=AMOUNT, such as gpu=1") from None
    if not amounts and not arguments.label:
        return []
    return [{"amounts": amounts or {"cpu": 1.0}, "labels": arguments.label}]


def environment_of(arguments: argparse.Namespace) -> dict[str, str]:
    """Return what `--env` says. Raises `SettingsError`."""
    return pairs_of(arguments.env, "--env")


def pairs_of(texts: list[str], option: str) -> dict[str, str]:
    """Return what an option says that is given several times as `NAME=VALUE`. Raises `SettingsError`."""
    pairs = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name:
            raise SettingsError(f"{option} {text}: expected NAME=VALUE")
        pairs[name] = value
    return pairs


def inputs_of(arguments: argparse.Namespace, farm: Client) -> dict[str, str]:
    """Return what `--input` says, by references; files of here are sent. Raises `SettingsError`."""
    from dtf_lightning.farm.rules.inputs import is_local

    inputs = {}
    for text in arguments.input:
        place, sign, reference = text.partition("=")
        if not sign or not place or not reference:
            raise SettingsError(f"--input {text}: expected PLACE=FILE, such as data=../data")
        inputs[place] = farm.send_input(reference) if is_local(reference) else reference
    return inputs


def duration(text: str) -> float:
    """Return the seconds of an option's text such as `90`, `90s` or `10m`, as argparse takes it."""
    from dtf_lightning.settings.durations import seconds_of

    try:
        seconds = seconds_of(text) or float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds, or a text such as 60s or 10m, got {text!r}")
    return seconds
