"""`dtf farm scaling`: the pools that a farm scales by itself, what it has decided, and why."""

from __future__ import annotations

import argparse
import json
from typing import Any

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, add_json, connect
from dtf_lightning.farm.cli.tables import print_table

LATEST = 10
"""Steps of a pool that are printed."""


def add_scaling(actions: Commands) -> None:
    """Add the command to those of `dtf farm`."""
    parser = add_farm_command(
        actions,
        "scaling",
        _scaling,
        "the pools of workers that the farm starts and drains by need: what it does, and why",
    )
    add_json(parser)
    add_farm(parser)


def _scaling(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        told = farm.scaling()
    if arguments.json:
        print(json.dumps(told))
    elif not told["enabled"]:
        print("the farm scales nothing: `scaling.pools` of coordinator.yaml names a file of pools")
    else:
        _print(told)
    return DONE


def _print(told: dict[str, Any]) -> None:
    rows = [
        [
            pool["name"],
            pool["provider"],
            *(str(pool["workers"][state]) for state in ("busy", "idle", "starting", "leaving")),
            f"{pool['minimum']} to {pool['maximum']}",
            f"{100 * pool['utilisation']:.0f} %",
            str(pool["waiting"]),
            f"{pool['oldest_wait']:.0f} s",
            ""
            if not pool["cost"]
            else f"{pool['spent']:.2f}" + ("" if pool["budget"] is None else f" of {pool['budget']:g}"),
        ]
        for pool in told["pools"]
    ]
    header = ["POOL", "PROVIDER", "BUSY", "IDLE", "STARTING", "LEAVING", "LIMITS", "USED", "WAITING", "OLDEST", "SPENT"]
    print_table(header, rows)
    for pool in told["pools"]:
        decision = pool["decision"]
        does = [f"ask for {decision['start']}"] if decision["start"] else []
        does += [f"drain {', '.join(decision['drain'])}"] if decision["drain"] else []
        word = "would " if told["dry_run"] and does else ""
        print(f"{pool['name']}: {word}{' and '.join(does) or 'nothing to do'}: {decision['reason']}")
        if pool["problem"]:
            print(f"{pool['name']}: its provider failed: {pool['problem']}")
        for step in pool["steps"][:LATEST]:
            did = [f"asked for {step['started']}"] if step["started"] else []
            did += [f"drained {', '.join(step['drained'])}"] if step["drained"] else []
            print(f"  {step['at']}: {' and '.join(did)}: {step['reason']}")
    for one in told["unserved"]:
        print(f"no pool could do {one['tasks']} tasks, such as {one['task']}: {one['reason']}")
    if told["dry_run"]:
        print("nothing is done: `scaling.dry_run` of coordinator.yaml is true")
