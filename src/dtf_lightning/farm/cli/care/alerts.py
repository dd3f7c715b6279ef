"""`dtf farm alerts`: what fires, who was told, and what people say to it."""

from __future__ import annotations

import argparse
import json
from typing import Any

from dtf_lightning.cli.main import DONE, FAILED
from dtf_lightning.cli.options import Commands
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, add_json, connect
from dtf_lightning.farm.cli.tables import print_table
from dtf_lightning.farm.cli.verdicts.durations import seconds_of_option


def add_alerts(actions: Commands) -> None:
    """Add the commands to those of `dtf farm`."""
    alerts = actions.add_parser("alerts", help="what fires, who was told; acknowledge, silence, try handlers")
    kinds = alerts.add_subparsers(title="commands", required=True, metavar="COMMAND")
    listed = add_farm_command(kinds, "list", _list, "the incidents, with what could not be told, and the silences")
    listed.add_argument("--open", action="store_true", help="none that is over")
    add_json(listed)
    acknowledge = add_farm_command(
        kinds, "acknowledge", _acknowledge, "say that somebody is at it: it does not escalate"
    )
    acknowledge.add_argument("incident", metavar="INCIDENT", help="its id, of `dtf farm alerts list`")
    silence = add_farm_command(kinds, "silence", _silence, "say nothing of some alerts for a while")
    silence.add_argument("rule", metavar="RULE", help="a rule's or incident's name, or a pattern such as 'etcd*'")
    silence.add_argument("--subject", default="*", help="a worker, a class of devices, or a pattern (default: all)")
    silence.add_argument("--for", dest="time", required=True, metavar="TIME", help="such as 2h, 90d at most")
    silence.add_argument("--reason", required=True, help="why")
    unsilence = add_farm_command(kinds, "unsilence", _unsilence, "end a silence")
    unsilence.add_argument("silence", metavar="SILENCE", help="its id, of `dtf farm alerts list`")
    test = add_farm_command(kinds, "test", _test, "let a handler say that this is a test")
    test.add_argument("handler", metavar="HANDLER", help="its name in `alerts.handlers`, or `log`")
    for command in (listed, acknowledge, silence, unsilence, test):
        add_farm(command)


def _list(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        told = farm.alerts(open_only=arguments.open)
    if arguments.json:
        print(json.dumps(told))
        return DONE
    if not told["rules"]:
        print("no rules: write some into the section `alerts` of coordinator.yaml")
    rows = [_row(one) for one in told["incidents"]]
    if rows:
        print_table(("INCIDENT", "STATE", "SEVERITY", "SINCE (UTC)", "OWNER", "WHAT"), rows)
    for one in told["incidents"]:
        for trouble in one["trouble"]:
            print(f"{one['id']}: {trouble}")
    for one in told["silences"]:
        if one["active"]:
            print(
                f"silence {one['id']}: {one['rule']} of {one['subject']} until {one['until']} ({one['by']}): {one['reason']}"
            )
    if told["rules"] and not rows:
        print("nothing fires")
    return DONE


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    state = one["state"]
    if state == "firing" and one["silenced"]:
        state = "silenced"
    elif state == "firing" and one["acknowledged"]:
        state = f"acknowledged by {one['acknowledged_by']}"
    shown = one["alerts"] or one["past"]
    first = shown[0] if shown else {"subject": "", "reason": ""}
    more = f", and {len(shown) - 1} more" if len(shown) > 1 else ""
    what = f"{first['subject'] or 'the farm'}: {first['reason']}{more}"
    return one["id"], state, one["severity"], one["opened"][:16], ", ".join(one["owners"]) or "-", what


def _acknowledge(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        told = farm.acknowledge_alert(arguments.incident)
    print(f"{told['id']}: acknowledged by {told['acknowledged_by']}")
    return DONE


def _silence(arguments: argparse.Namespace) -> int:
    seconds = seconds_of_option(arguments.time, "--for")
    with connect(arguments) as farm:
        told = farm.silence_alerts(arguments.rule, subject=arguments.subject, seconds=seconds, reason=arguments.reason)
    print(f"silence {told['id']}: nothing is said of {told['rule']} of {told['subject']} until {told['until']}")
    return DONE


def _unsilence(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        farm.unsilence_alerts(arguments.silence)
    print(f"{arguments.silence}: it is said again")
    return DONE


def _test(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        told = farm.test_alert_handler(arguments.handler)
    print(f"{told['handler']}: {'told' if told['told'] else told['error']}")
    return DONE if told["told"] else FAILED
