"""`dtf farm nodes` and `dtf farm node disable|enable`: the coordinators."""

from __future__ import annotations

import argparse
import json

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, add_json, connect
from dtf_lightning.farm.cli.tables import print_table


def add_nodes(actions: Commands) -> None:
    """Add the commands to the parser."""
    nodes = add_farm_command(actions, "nodes", _nodes, "the farm's coordinators: who leads, and how their machines are")
    add_json(nodes)
    add_farm(nodes)
    node = actions.add_parser("node", help="take work away from a coordinator, or give it back")
    changes = node.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, text in (
        ("disable", "let a coordinator hand over the leadership and take no work"),
        ("enable", "let a coordinator work again"),
    ):
        command = add_farm_command(changes, name, _change, text)
        command.add_argument("node", metavar="COORDINATOR")
        command.set_defaults(change=name)
        if name == "disable":
            command.add_argument("--reason", default="", help="why, for others")
        add_farm(command)


def _nodes(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        status = farm.cluster_status()
    if arguments.json:
        print(json.dumps(status))
        return DONE
    rows = [
        (
            node["node_id"],
            node["state"] if node["enabled"] else f"{node['state']}, disabled",
            node["health_status"],
            "" if node["uptime_seconds"] is None else f"{node['uptime_seconds']:.0f} s",
            node["address"],
        )
        for node in status["nodes"]
    ]
    print_table(("COORDINATOR", "STATE", "HEALTH", "UP", "ADDRESS"), rows)
    print(f"{status['cluster_health']}{': ' if status['reasons'] else ''}{'; '.join(status['reasons'])}")
    return DONE


def _change(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        told = farm.change_node(arguments.node, arguments.change, reason=getattr(arguments, "reason", ""))
    print(f"{told['node_id']}: {told['state']}{'' if told['enabled'] else ', disabled'}")
    return DONE
