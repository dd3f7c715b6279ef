"""`dtf farm artifacts`: the files that a task has left."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from dtf_lightning.cli.main import DONE, FAILED
from dtf_lightning.cli.options import Commands
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, add_json, connect
from dtf_lightning.farm.cli.tables import print_table


def add_artifacts(actions: Commands) -> None:
    """Add the command."""
    parser = add_farm_command(actions, "artifacts", _artifacts, "the files that a task has left, and a copy of them")
    parser.add_argument("task", metavar="ID")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="copy them there, by their names")
    add_json(parser)
    add_farm(parser)


def _artifacts(arguments: argparse.Namespace) -> int:
    with connect(arguments) as client:
        told = client.artifacts(arguments.task)
        if arguments.to is not None:
            for one in told["artifacts"]:
                client.fetch_artifact(arguments.task, one["name"], arguments.to, revision=told["revision"])
    if arguments.json:
        print(json.dumps(told))
    else:
        print_table(
            ("NAME", "BYTES", "SHA-256", "URL"),
            [(one["name"], str(one["size"]), one["digest"][:12], one["url"]) for one in told["artifacts"]],
        )
    for name in told["missing"]:
        print(f"missing: {name} (`dtf farm task {arguments.task}` says why)", file=sys.stderr)
    return FAILED if told["missing"] else DONE
