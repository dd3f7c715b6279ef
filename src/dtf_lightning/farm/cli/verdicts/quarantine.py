"""`dtf farm quarantine`: tests whose failures do not count for a while, each with an owner and an end."""

from __future__ import annotations

import argparse
import json

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, add_json, connect
from dtf_lightning.farm.cli.tables import print_table
from dtf_lightning.farm.cli.verdicts.durations import seconds_of_option


def add_quarantine(actions: Commands) -> None:
    """Add the commands to those of `dtf farm`."""
    quarantine = actions.add_parser("quarantine", help="tests whose failures do not count for a while")
    kinds = quarantine.add_subparsers(title="commands", required=True, metavar="COMMAND")
    add = add_farm_command(kinds, "add", _add, "let a test fail for a while; or change until when")
    add.add_argument(
        "test", metavar="TEST", help="id of a test of pytest, or name of a task; with all of its parameters"
    )
    add.add_argument("--owner", required=True, help="who mends it")
    add.add_argument("--reason", required=True, help="why, such as the issue's address")
    add.add_argument("--expires", default="14d", metavar="TIME", help="from now, 90d at most (default: %(default)s)")
    remove = add_farm_command(kinds, "remove", _remove, "let a test count again")
    remove.add_argument("test", metavar="TEST")
    for command in (add, remove):
        command.add_argument("--project", default="default", help="of the test (default: %(default)s)")
        add_farm(command)
    listed = add_farm_command(kinds, "list", _list, "the tests in quarantine, and those that have left it lately")
    listed.add_argument("--project", help="only of this one")
    add_json(listed)
    add_farm(listed)


def _add(arguments: argparse.Namespace) -> int:
    body = {
        "owner": arguments.owner,
        "reason": arguments.reason,
        "seconds": seconds_of_option(arguments.expires, "--expires"),
    }
    with connect(arguments) as farm:
        told = farm.put_into_quarantine(arguments.project, arguments.test, **body)
    print(f"{told['test']}: in quarantine until {told['expires']}, {told['owner']}")
    return DONE


def _remove(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        farm.take_out_of_quarantine(arguments.project, arguments.test)
    print(f"{arguments.test}: counts again")
    return DONE


def _list(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        told = farm.quarantine(arguments.project)
    if arguments.json:
        print(json.dumps(told))
        return DONE
    rows = [
        (
            one["project"],
            one["test"],
            one["owner"],
            f"{one['expires'][:16]}{'' if one['active'] else ' (expired)'}",
            one["reason"],
        )
        for one in told
    ]
    print_table(("PROJECT", "TEST", "OWNER", "UNTIL (UTC)", "REASON"), rows)
    return DONE
