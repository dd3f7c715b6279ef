"""`dtf farm results`: what a farm knows of tasks that are done."""

from __future__ import annotations

import argparse
import sys

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.database.formats import FORMATS, format_rows
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, connect
from dtf_lightning.farm.cli.verdicts.changes import add_changes


def add_results(actions: Commands) -> None:
    """Add the commands to those of `dtf farm`."""
    results = actions.add_parser("results", help="results of tasks that are done, in SQL")
    kinds = results.add_subparsers(title="commands", required=True, metavar="COMMAND")
    query = add_farm_command(kinds, "query", _query, "ask one SELECT of farm.results, farm.metrics, farm.counts, ...")
    query.add_argument("sql", metavar="SQL", help='such as "SELECT name, outcome, ended - started FROM farm.results"')
    query.add_argument("--format", choices=FORMATS, default="table", help="(default: %(default)s)")
    query.add_argument("--json", dest="format", action="store_const", const="json", help="the same as --format json")
    add_farm(query)
    add_changes(kinds)


def _query(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        answer = farm.query(arguments.sql)
    print(format_rows(answer["columns"], answer["rows"], arguments.format))
    if answer["truncated"]:
        print(f"dtf farm: only the first {len(answer['rows'])} rows are shown: ask for less", file=sys.stderr)
    return DONE
