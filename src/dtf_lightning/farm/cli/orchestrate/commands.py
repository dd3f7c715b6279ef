"""`dtf farm orchestrate` submits a job that is split over devices; `dtf farm orchestrated` lists, shows and ends such jobs."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtf_lightning.cli.main import DONE, FAILED, INTERRUPTED
from dtf_lightning.cli.options import Commands
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli.options import (
    add_farm,
    add_farm_command,
    add_json,
    connect,
    environment_of,
    needs_of,
    pairs_of,
)
from dtf_lightning.farm.cli.tables import print_table

if TYPE_CHECKING:
    from dtf_lightning.farm.client import Client

LONG_POLL = 20.0
_STRATEGIES = ("auto", "data_parallel", "function_parallel", "ensemble")


def add_orchestrate(actions: Commands) -> None:
    """Add the commands to those of `dtf farm`."""
    one = add_farm_command(
        actions, "orchestrate", _orchestrate, "one job over several devices: split, run, merged; prints the result"
    )
    one.add_argument("command_line", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what each subtask runs")
    one.add_argument(
        "--call", default="", metavar="MODULE:FUNCTION", help="what each subtask calls, in the place of COMMAND"
    )
    one.add_argument(
        "--kwarg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="of the call, as JSON or a text; several times",
    )
    one.add_argument("--strategy", choices=_STRATEGIES, default="auto", help="how it is split (default: %(default)s)")
    one.add_argument("--inputs", metavar="N|FILE", help="how many there are, or a JSON file with a list of them")
    for name, what in (
        ("function", "a word that a subtask is given, or MODULE:FUNCTION that it calls"),
        ("model", "of an ensemble: a word that a subtask is given"),
        ("device", "of an ensemble: a label of workers on which the same is done"),
    ):
        one.add_argument(f"--{name}", action="append", default=[], metavar=name.upper(), help=f"{what}; several times")
    one.add_argument(
        "--merge", metavar="RULE", help="how results become one: a word such as mean, or JSON with its options"
    )
    one.add_argument("--pieces", type=int, metavar="N", help="shares of the inputs for each device (default: 4)")
    one.add_argument(
        "--name", dest="named", metavar="NAME", default="", help="of the job; its speeds are remembered by it"
    )
    one.add_argument(
        "--needs", action="append", default=[], metavar="RESOURCE=AMOUNT", help="of each subtask; several times"
    )
    one.add_argument("--label", action="append", default=[], metavar="LABEL", help="that each worker must carry")
    one.add_argument(
        "--env", action="append", default=[], metavar="NAME=VALUE", help="in its environment; several times"
    )
    one.add_argument("--project", default="default", help="whose share it counts against (default: %(default)s)")
    one.add_argument("--priority", type=int, help="of its subtasks (default: the farm's)")
    one.add_argument("--subtask-timeout", type=float, metavar="SECONDS", help="of an attempt (default: the farm's)")
    one.add_argument("--retry-limit", type=int, metavar="N", help="tries after one that failed (default: the farm's)")
    one.add_argument(
        "--no-retry", action="store_true", help="neither try a failed subtask again nor cut its share anew"
    )
    one.add_argument("--no-source", action="store_true", help="do not take this folder's files along")
    one.add_argument("--no-wait", action="store_true", help="print its id, and leave it to the farm")
    add_json(one)
    add_farm(one)

    told = add_farm_command(
        actions, "orchestrated", _orchestrated, "jobs that are split over devices: list, show, cancel"
    )
    told.add_argument("job", nargs="?", metavar="ID", help="of one of them, with its subtasks and its result")
    told.add_argument("--cancel", action="store_true", help="end it with all its subtasks")
    add_json(told)
    add_farm(told)


def _orchestrate(arguments: argparse.Namespace) -> int:
    fields: dict[str, Any] = {
        "merge": _json_or_text(arguments.merge) if arguments.merge else None,
        "priority": arguments.priority,
        "subtask_timeout": arguments.subtask_timeout,
        "retry_limit": arguments.retry_limit,
        "retry_failed_subtasks": False if arguments.no_retry else None,
    }
    data = _data(arguments)
    with connect(arguments) as farm:
        if not arguments.no_source:
            from dtf_lightning.farm.sources import pack

            source = pack(Path.cwd())
            if source.num_files:
                data |= {"source": farm.send_source(source), "folder": source.folder}
        job = farm.orchestrate(data, arguments.strategy, **fields)
        if arguments.no_wait:
            print(json.dumps({"task_id": job}) if arguments.json else job)
            return DONE
        try:
            return tell_end(farm, job, as_json=arguments.json)
        except KeyboardInterrupt:
            farm.close()  # an answer may be half read
            farm.cancel_orchestrated_task(job, "Ctrl-C")
            print(f"dtf farm: the job {job} is cancelled", file=sys.stderr)
            return INTERRUPTED


def _data(arguments: argparse.Namespace) -> dict[str, Any]:
    words = arguments.command_line
    command = words[1:] if words[:1] == ["--"] else words
    told: dict[str, Any] = {
        "name": arguments.named,
        "command": command,
        "call": arguments.call,
        "kwargs": {name: _json_or_text(value) for name, value in pairs_of(arguments.kwarg, "--kwarg").items()},
        "functions": arguments.function,
        "models": arguments.model,
        "devices": arguments.device,
        "needs": needs_of(arguments),
        "environment": environment_of(arguments),
        "project": arguments.project,
        "pieces": arguments.pieces,
        "inputs": _inputs(arguments.inputs) if arguments.inputs else None,
    }
    return {name: value for name, value in told.items() if value}


def _inputs(text: str) -> int | list[Any]:
    if text.isascii() and text.isdecimal():
        return int(text)
    try:
        told = json.loads(Path(text).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(
            f"--inputs {text}: expected a number, or a JSON file with a list of inputs ({error})"
        ) from None
    if not isinstance(told, list):
        raise SettingsError(f"--inputs {text}: the file holds no list of inputs, but a {type(told).__name__}")
    return told


def _json_or_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def tell_end(farm: Client, job: str, *, as_json: bool) -> int:
    """Wait for a job's end, tell how it goes and what came of it, and return the exit code."""
    last = -1
    while True:
        told = farm.orchestrated_task(job, wait=LONG_POLL if last >= 0 else 0.001)
        percent = told["completion_percentage"]
        if last < 0:
            print(f"dtf farm: job {job}: {told['strategy']}, {told['reason']}", file=sys.stderr)
        if told["end_time"]:
            break
        if percent != last >= 0:
            print(f"dtf farm: {percent} %", file=sys.stderr)
        last = percent
    if as_json:
        print(json.dumps(told))
    elif told["result"] is not None:
        print(json.dumps(told["result"], indent=2))
    if told["status"] == "completed":
        return DONE
    partial = f"; the result is partial, without {', '.join(told['missing'][:10])}" if told["missing"] else ""
    print(f"dtf farm: the job {job} ended as {told['status']}: {told['error']}{partial}", file=sys.stderr)
    return INTERRUPTED if told["status"] == "cancelled" else FAILED


def _orchestrated(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        if arguments.job is None:
            if arguments.cancel:
                raise SettingsError("--cancel: say which job, by its ID")
            told = list(farm.orchestrated_tasks())
            if arguments.json:
                print(json.dumps(told))
                return DONE
            rows = [
                (one["task_id"], one["name"], one["status"], f"{one['completion_percentage']} %", one["strategy"])
                for one in told
            ]
            print_table(("JOB", "NAME", "STATUS", "DONE", "STRATEGY"), rows)
            return DONE
        if arguments.cancel:
            cancellation = farm.cancel_orchestrated_task(arguments.job)
            print(json.dumps({"cancellation": cancellation}) if arguments.json else f"{arguments.job}: {cancellation}")
            return DONE
        return _show(farm.orchestrated_task(arguments.job, partial=True), as_json=arguments.json)


def _show(told: dict[str, Any], *, as_json: bool) -> int:
    if as_json:
        print(json.dumps(told))
        return DONE
    print(f"{told['name']}: {told['status']}, {told['completion_percentage']} %, project {told['project']}")
    print(f"  {told['strategy']}: {told['reason']}")
    if told["error"]:
        print(f"  {told['error']}")
    rows = [
        (
            one["name"],
            one["status"],
            one.get("worker_id") or "",
            one["subtask_id"],
            "cut anew" if one.get("split_anew") else "",
        )
        for one in told["subtasks"]
    ]
    print_table(("SHARE", "STATUS", "WORKER", "TASK", ""), rows)
    if told["result"] is not None:
        print(f"{'partial result' if told['partial'] else 'result'}: {json.dumps(told['result'])}")
    return DONE
