"""The commands of `dtf farm` that are about tasks: to run one, and to look at those that were. `dtf farm run` must start quickly.

So this module imports little, and where one of its commands is called the parser holds these commands only (`register_tasks`).
"""

from __future__ import annotations

import argparse
import json
from itertools import islice
from typing import TYPE_CHECKING

from dtf_lightning.cli.main import DONE, FAILED
from dtf_lightning.cli.options import Commands
from dtf_lightning.farm.cli import run as run_command
from dtf_lightning.farm.cli.options import (
    add_farm,
    add_farm_command,
    add_json,
    add_plan_options,
    add_task_options,
    connect,
)
from dtf_lightning.farm.cli.streams.logs import show_logs
from dtf_lightning.farm.cli.tables import print_table, print_use

if TYPE_CHECKING:
    from dtf_lightning.farm.client import TaskInfo

NAMES = ("run", "submit", "tasks", "task", "logs", "cancel", "retry")
"""Of the commands."""
_FILTERS = ("status", "project", "plan", "name", "worker")
"""Of the list of tasks."""


def register_tasks(commands: Commands) -> None:
    """Add `dtf farm` with these commands alone, where one of them is called."""
    actions = commands.add_parser("farm").add_subparsers(title="commands", required=True, metavar="COMMAND")
    add_tasks(actions)


def add_tasks(actions: Commands) -> None:
    """Add them to the parser of `dtf farm`."""
    run = add_farm_command(
        actions, "run", run_command.run, "run a command on the farm as if here: its output, its exit code; or PLAN.yaml"
    )
    add_task_options(run)
    add_plan_options(run)
    add_farm(run)

    submit = add_farm_command(
        actions,
        "submit",
        run_command.submit_only,
        "submit a command and print its task's id; or PLAN.yaml, and print the plan's",
    )
    add_task_options(submit)
    add_json(submit)
    add_farm(submit)

    tasks = add_farm_command(actions, "tasks", _tasks, "the tasks that are not done, and those that are")
    for name in _FILTERS:
        tasks.add_argument(f"--{name}", dest=f"wanted_{name}", help="only those")
    tasks.add_argument("--sort", metavar="FIELD", help="such as name or -ended (default: -created, the newest first)")
    tasks.add_argument("--limit", type=int, default=1000, metavar="N", help="at most so many (default: %(default)s)")
    add_json(tasks)
    add_farm(tasks)

    task = add_farm_command(actions, "task", _task, "one task: where it runs, or why it does not")
    task.add_argument("task", metavar="ID")
    add_json(task)
    add_farm(task)

    logs = add_farm_command(actions, "logs", _logs, "what a task has written")
    logs.add_argument("task", metavar="ID")
    logs.add_argument("-f", "--follow", action="store_true", help="to its end")
    add_farm(logs)

    cancel = add_farm_command(actions, "cancel", _cancel, "end a task")
    cancel.add_argument("task", nargs="+", metavar="ID")
    add_farm(cancel)

    retry = add_farm_command(
        actions, "retry", _retry, "submit a task that is done again, with those that were skipped because of it"
    )
    retry.add_argument("task", metavar="ID", help="of a task, or with --failed of a plan")
    retry.add_argument("--failed", action="store_true", help="all tasks of the plan ID that did not complete")
    add_json(retry)
    add_farm(retry)


def _tasks(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        filters = {name: value for name in _FILTERS if (value := getattr(arguments, f"wanted_{name}"))}
        if arguments.sort:
            filters["sort"] = arguments.sort
        tasks = list(islice(farm.tasks(**filters, limit=max(1, min(arguments.limit, 1000))), arguments.limit))
    if arguments.json:
        print(json.dumps([task.raw for task in tasks]))
        return DONE
    rows = [(task.task_id, task.status, _where(task), _what(task)) for task in tasks]
    print_table(("TASK", "STATUS", "WORKER", "COMMAND"), rows)
    return DONE


def _task(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        task = farm.task(arguments.task)
    if arguments.json:
        print(json.dumps(task.raw))
        return DONE
    print(f"{task.task_id}: {task.status}")
    told = {"command": _what(task), "worker": _where(task), "why": task.reason}
    for name, value in told.items():
        if value:
            print(f"  {name}: {value}")
    for name in ("create_time", "start_time", "end_time"):
        if task.raw.get(name):
            print(f"  {name.replace('_', ' ')}: {task.raw[name]}")
    _show_training(task)
    print_use(task.raw.get("metadata") or {})
    results = task.raw.get("results") or {}
    if returned := results.get("returned"):
        print(f"  returned: {json.dumps(returned['value']) if 'value' in returned else returned.get('artifact')}")
    for name, value in {**(results.get("metrics") or {}), **(results.get("counts") or {})}.items():
        print(f"  {name}: {'not a number' if value is None else f'{value:g}'}")
    return DONE


def _show_training(task: TaskInfo) -> None:
    """Say how large a training's world is, and which of its devices others want or have."""
    world = (task.raw.get("metadata") or {}).get("training")
    if not world:
        return
    print(f"  world: {world['running']} of {world['wanted']} parts run, {world['minimum']} it keeps")
    if run := world.get("run"):
        words = {
            "generation": "generation {:.0f}",
            "world_size": "{:.0f} workers",
            "step": "step {:.0f}",
            "goodput": "goodput {:.1%}",
        }
        told = ", ".join(text.format(run[name]) for name, text in words.items() if name in run)
        print(f"  run: {told} (as of {run['at']})")
    for part, worker in world["workers"].items():
        print(f"  part {part}: runs on {worker}")
    for one in world["leaving"]:
        print(f"  part {one['part']}: gives {one['worker']} to {one['wanted_by']}, asked {one['since']}")
    for one in world["away"]:
        print(f"  part {one['part']}: gave its device back {one['since']}")
    for one in world["borrowings"]:
        back = f"back {one['back']}" if one["back"] else "not back yet"
        print(
            f"  borrowed: {one['worker']} of {one['part']} by {one['wanted_by']}, asked {one['asked']}, left {one['left']}, {back}"
        )
    if world["num_borrowings"]:
        print(f"  borrowings: {world['num_borrowings']}, of {world['borrowed_seconds']:.0f} s in all")


def _logs(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        show_logs(farm, farm.task(arguments.task), follow=arguments.follow)
    return DONE


def _cancel(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        verdicts = [farm.cancel(task) for task in arguments.task]
    for task, verdict in zip(arguments.task, verdicts, strict=True):
        print(f"{task}: {'cancelled' if verdict == 'cancelled' else 'it had ended before'}")
    return DONE if all(verdict == "cancelled" for verdict in verdicts) else FAILED


def _retry(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        if arguments.failed:
            again = farm.retry_plan(arguments.task)
        else:
            again = {arguments.task: farm.retry(arguments.task)}
    if arguments.json:
        print(json.dumps({"plan_id" if arguments.failed else "task_id": arguments.task, "tasks": again}))
    elif arguments.failed:
        follow = f": dtf farm tasks --plan {arguments.task}" if again else ""
        print(f"{len(again)} tasks of the plan are submitted again{follow}")
    else:
        print(again[arguments.task])
    return DONE


def _what(task: TaskInfo) -> str:
    command = (task.raw.get("parameters") or {}).get("command") or []
    name = task.raw.get("name") or ""
    return str(name) or " ".join(map(str, command))


def _where(task: TaskInfo) -> str:
    return str(task.raw.get("worker_id") or "")
