"""The commands of schedules, and what `dtf farm run` and `submit` say of a plan that has one."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, add_json, connect
from dtf_lightning.farm.cli.tables import print_table

_ACTIONS = {
    "show": "its times, and what became of the latest of them",
    "pause": "submit nothing until `resume`",
    "resume": "go on; what would have been submitted meanwhile is not",
    "remove": "forget it; what was submitted goes on",
    "run-now": "submit its plan now, and print the plan's id",
}


def add_schedules(actions: Commands) -> None:
    """Add the commands to those of `dtf farm`."""
    listed = add_farm_command(actions, "schedules", _list, "the plans that are submitted at certain times")
    add_json(listed)
    add_farm(listed)
    one = add_farm_command(actions, "schedule", _one, "one of them: show, pause, resume, remove, run-now")
    one.add_argument("schedule", metavar="NAME")
    one.add_argument(
        "action",
        nargs="?",
        choices=list(_ACTIONS),
        default="show",
        help="; ".join(f"{name}: {text}" for name, text in _ACTIONS.items()),
    )
    add_json(one)
    add_farm(one)


def tell_registered(name: str, told: Mapping[str, Any], *, as_json: bool) -> int:
    """Say that a plan's schedule is registered, and when it comes first."""
    if as_json:
        print(json.dumps({"name": name, "schedule": told}))
        return DONE
    print(name)
    replaced = ", in the place of the one of this name" if told["replaced"] else ""
    print(
        f"dtf farm: the schedule {name} is registered{replaced}; its next time is {told['next_time'] or 'never'}: "
        f"dtf farm schedule {name}",
        file=sys.stderr,
    )
    return DONE


def _list(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        schedules = farm.schedules()
    if arguments.json:
        print(json.dumps(schedules))
        return DONE
    rows = [(one["name"], _times(one), _next(one), *_last(one["last_run"])) for one in schedules]
    print_table(("SCHEDULE", "TIMES", "NEXT", "LAST", "OUTCOME"), rows)
    return DONE


def _one(arguments: argparse.Namespace) -> int:
    name, action = arguments.schedule, arguments.action
    with connect(arguments) as farm:
        if action == "show":
            return _show(farm.schedule(name), as_json=arguments.json)
        if action == "run-now":
            plan = farm.run_schedule(name)
            print(json.dumps({"name": name, "plan_id": plan}) if arguments.json else plan)
            return DONE
        told = farm.change_schedule(name, action)
    if arguments.json:
        print(json.dumps(told))
    elif action == "remove":
        print(f"{name}: removed")
    else:
        print(f"{name}: {_next(told)}")
    return DONE


def _show(told: Mapping[str, Any], *, as_json: bool) -> int:
    if as_json:
        print(json.dumps(told))
        return DONE
    print(f"{told['name']}: {_times(told)}, overlap: {told['overlap']}, project {told['project']}")
    print(f"  next: {_next(told)}")
    if told["running"]:
        print(f"  running: plan {told['running']}")
    rows = [(run["time"], run["outcome"], run["plan_id"] or "", _why(run)) for run in told["runs"]]
    print_table(("TIME", "OUTCOME", "PLAN", "WHY"), rows)
    return DONE


def _times(told: Mapping[str, Any]) -> str:
    return f"{told['cron']} ({told['timezone']})"


def _next(told: Mapping[str, Any]) -> str:
    return "paused" if told["paused"] else str(told["next_time"] or "never")


def _last(run: Mapping[str, Any] | None) -> tuple[str, str]:
    return ("", "") if run is None else (str(run["time"]), str(run["outcome"]))


def _why(run: Mapping[str, Any]) -> str:
    told = [run["reason"]] if run["reason"] else []
    if run["by_hand"]:
        told.append("by hand")
    if run["missed"]:
        told.append(f"caught up: {run['missed']} times before it were missed")
    return "; ".join(told)
