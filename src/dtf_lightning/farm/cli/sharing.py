"""`dtf farm project` and `dtf farm licence`: how the farm is shared."""

from __future__ import annotations

import argparse
import json
from typing import Any

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, add_json, connect
from dtf_lightning.farm.cli.reservations.commands import add_reservation
from dtf_lightning.farm.cli.tables import print_table


def add_sharing(actions: Commands) -> None:
    """Add the commands to those of `dtf farm`."""
    add_reservation(actions)
    project = actions.add_parser("project", help="projects and their shares of the farm")
    kinds = project.add_subparsers(title="commands", required=True, metavar="COMMAND")
    listed = add_farm_command(kinds, "list", _list_projects, "all projects")
    add_json(listed)
    add_farm(listed)
    made = add_farm_command(kinds, "set", _set_project, "make a project, or change it")
    made.add_argument("project", metavar="NAME")
    made.add_argument(
        "--weight", type=float, metavar="W", help="of twice the weight it gets twice the share (a new one: 1)"
    )
    made.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="LICENCE=N",
        help="so many of a licence may its tasks hold at once; several times, in the place of those before",
    )
    for option, text in (
        ("--max-running", "so many of its tasks may run at once (0: any number)"),
        ("--max-pending", "so many may be there without being done, and no more are taken (0: any number)"),
    ):
        made.add_argument(option, type=int, metavar="N", help=text)
    add_farm(made)

    licence = actions.add_parser("licence", help="what only so many tasks may use at once")
    kinds = licence.add_subparsers(title="commands", required=True, metavar="COMMAND")
    listed = add_farm_command(kinds, "list", _list_licences, "all licences")
    add_json(listed)
    add_farm(listed)
    made = add_farm_command(kinds, "set", _set_licence, "say how many there are of a licence")
    made.add_argument("licence", metavar="NAME")
    made.add_argument("total", type=int, metavar="N")
    add_farm(made)


def _list_projects(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        projects = farm.projects()
    if arguments.json:
        print(json.dumps(projects))
        return DONE
    rows = [(one["name"], f"{one['weight']:g}", _limits(_all_limits(one))) for one in projects]
    print_table(("PROJECT", "WEIGHT", "LIMITS"), rows)
    return DONE


def _set_project(arguments: argparse.Namespace) -> int:
    limits = {}
    for text in arguments.limit:
        name, sign, number = text.partition("=")
        if not (name and sign and number.isdecimal()):
            raise SettingsError(f"--limit {text}: expected LICENCE=N, such as matlab=2")
        limits[name] = int(number)
    with connect(arguments) as farm:
        told = farm.set_project(
            arguments.project,
            weight=arguments.weight,
            limits=limits or None,
            max_running=arguments.max_running,
            max_pending=arguments.max_pending,
        )
    print(f"{told['name']}: weight {told['weight']:g} {_limits(_all_limits(told))}".rstrip())
    return DONE


def _list_licences(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        licences = farm.licences()
    if arguments.json:
        print(json.dumps(licences))
        return DONE
    print_table(("LICENCE", "TOTAL"), [(name, str(total)) for name, total in licences.items()])
    return DONE


def _set_licence(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        farm.set_licence(arguments.licence, arguments.total)
    print(f"{arguments.licence}: {arguments.total}")
    return DONE


def _all_limits(project: dict[str, Any]) -> dict[str, int]:
    quota = {name: project[name] for name in ("max_running", "max_pending") if project[name]}
    return {**project["limits"], **quota}


def _limits(limits: dict[str, int]) -> str:
    return " ".join(f"{name}={number}" for name, number in sorted(limits.items()))
