"""`dtf farm reservation`: workers that people reserve, for maintenance or for a project."""

from __future__ import annotations

import argparse
import json
from datetime import datetime
from typing import Any

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, add_json, connect, duration
from dtf_lightning.farm.cli.tables import print_table


def add_reservation(actions: Commands) -> None:
    """Add the commands to those of `dtf farm`."""
    reservation = actions.add_parser("reservation", help="workers that are reserved, for maintenance or for a project")
    kinds = reservation.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add = add_farm_command(kinds, "add", _add, "reserve workers; what runs there goes on, and nothing else starts")
    add.add_argument("workers", nargs="*", metavar="WORKER", help="their names; else --needs or --label, and --number")
    add.add_argument(
        "--needs", action="append", default=[], metavar="RESOURCE=AMOUNT", help="what each must have; several times"
    )
    add.add_argument(
        "--label", action="append", default=[], metavar="LABEL", help="that each must carry; several times"
    )
    add.add_argument("--number", type=int, default=1, metavar="N", help="of workers (default: %(default)s)")
    add.add_argument(
        "--at", metavar="TIME", help="such as 2026-12-24T08:00, in this machine's zone if it has none (default: now)"
    )
    add.add_argument("--for", dest="lasts", type=duration, required=True, metavar="TIME", help="how long, such as 2h")
    add.add_argument(
        "--lead",
        type=duration,
        default=3600.0,
        metavar="TIME",
        help="before it begins, from when on only that starts which is expected to end in time (default: 1h)",
    )
    add.add_argument("--project", default="", help="whose tasks may start there meanwhile (default: nobody's)")
    add.add_argument("--reason", default="", help="for people")
    listed = add_farm_command(kinds, "list", _list, "the reservations, with what still runs on reserved workers")
    cancel = add_farm_command(kinds, "cancel", _cancel, "take a reservation back")
    cancel.add_argument("reservation", metavar="RESERVATION")
    for command in (add, listed):
        add_json(command)
    for command in (add, listed, cancel):
        add_farm(command)


def _add(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        told = farm.reserve(
            arguments.workers,
            seconds=arguments.lasts,
            begin=_time(arguments.at) if arguments.at else None,
            needs=_amounts(arguments.needs),
            labels=arguments.label,
            number=arguments.number,
            lead=arguments.lead,
            project=arguments.project,
            reason=arguments.reason,
        )
    print(json.dumps(told) if arguments.json else _sentence(told))
    return DONE


def _list(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        told = farm.reservations()
    if arguments.json:
        print(json.dumps(told))
        return DONE
    rows = [
        (
            one["reservation"],
            one["state"],
            one["begin"][:16],
            one["end"][:16],
            one["project"] or "nobody",
            ", ".join(one["workers"]),
            one["reason"],
        )
        for one in told
    ]
    print_table(("RESERVATION", "STATE", "FROM (UTC)", "UNTIL (UTC)", "FOR", "WORKERS", "REASON"), rows)
    for one in told:
        for worker, tasks in one["running"].items():
            print(f"{one['reservation']}: {worker} still runs {', '.join(tasks)}")
        if one["gone"] and one["state"] != "over":
            print(f"{one['reservation']}: {', '.join(one['gone'])}: not there now")
    return DONE


def _cancel(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        farm.cancel_reservation(arguments.reservation)
    print(f"{arguments.reservation}: cancelled")
    return DONE


def _sentence(told: dict[str, Any]) -> str:
    whose = f"for the project {told['project']}" if told["project"] else "for nobody's tasks"
    return f"{told['reservation']}: {', '.join(told['workers'])} from {told['begin']} to {told['end']}, {whose}"


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError as error:
        raise SettingsError(f"--at {text}: expected a time such as 2026-12-24T08:00 ({error})") from error


def _amounts(texts: list[str]) -> dict[str, float]:
    found = {}
    for text in texts:
        name, _, amount = text.partition("=")
        try:
            found[name] = float(amount)
        except ValueError:
            raise SettingsError(f"--needs {text}: expected RESOURCE=AMOUNT, such as gpu=1") from None
    return found
