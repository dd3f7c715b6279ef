"""The commands of `dtf farm`. Each is an adapter: it imports what it needs when it is called."""

from __future__ import annotations

import argparse
import json
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dtf_lightning.cli.main import DONE, FAILED
from dtf_lightning.cli.options import Commands, add_connection
from dtf_lightning.farm.cli import run as run_command
from dtf_lightning.farm.cli import serve
from dtf_lightning.farm.cli.api.nodes import add_nodes
from dtf_lightning.farm.cli.api.openapi import add_openapi
from dtf_lightning.farm.cli.artifacts import add_artifacts
from dtf_lightning.farm.cli.care.commands import add_care
from dtf_lightning.farm.cli.options import (
    add_farm,
    add_farm_command,
    add_json,
    add_plan_options,
    add_task_options,
    connect,
    duration,
)
from dtf_lightning.farm.cli.page.commands import add_page
from dtf_lightning.farm.cli.results import add_results
from dtf_lightning.farm.cli.schedules.commands import add_schedules
from dtf_lightning.farm.cli.security.commands import add_security
from dtf_lightning.farm.cli.settings.config import add_config
from dtf_lightning.farm.cli.sharing import add_sharing
from dtf_lightning.farm.cli.streams.logs import show_logs
from dtf_lightning.farm.cli.tables import print_table, print_use
from dtf_lightning.farm.cli.train import add_train
from dtf_lightning.farm.cli.verdicts.commands import add_verdicts

if TYPE_CHECKING:
    from dtf_lightning.farm.client import TaskInfo

_FILTERS = ("status", "project", "plan", "name", "worker")
"""Of the list of tasks."""


def register(commands: Commands) -> None:
    """Add them to the parser."""
    farm = commands.add_parser("farm", help="a pool of machines that runs tests and benchmarks")
    actions = farm.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_processes(actions)
    _add_coordinator(actions)
    _add_worker(actions)
    _add_tasks(actions)
    add_train(actions)
    _add_pool(actions)
    add_nodes(actions)
    add_openapi(actions)
    add_sharing(actions)
    add_security(actions)
    add_schedules(actions)
    add_results(actions)
    add_page(actions)
    add_artifacts(actions)
    add_care(actions)
    add_verdicts(actions)
    add_config(actions)


def _add_processes(actions: Commands) -> None:
    up = add_farm_command(
        actions, "up", serve.up, "a farm of this machine: etcd, a coordinator and a worker, until Ctrl-C"
    )
    up.add_argument(
        "--port", type=int, default=serve.PORT, help="of the coordinator; 0: a free one (default: %(default)s)"
    )
    up.add_argument(
        "--home",
        type=Path,
        metavar="DIR",
        help="where it keeps its things (default: $DTF_FARM_HOME, or ~/.local/state/dtf-farm)",
    )
    up.add_argument("--host", default="127.0.0.1", help="as for coordinator (default: %(default)s)")
    up.add_argument("--advertise", metavar="URL", help="as for coordinator; with --port")
    _add_tls(up)
    up.add_argument(
        "--ca",
        type=Path,
        metavar="FILE",
        help="authority of the certificate, for the worker and commands on this machine",
    )
    _add_strategy(up)
    up.add_argument(
        "--allow-pickle",
        action="store_true",
        help="take functions that travel by cloudpickle (`Client.submit(function)`)",
    )
    up.add_argument("--detach", action="store_true", help="go on in the background; `dtf farm down` ends it")

    demo = add_farm_command(
        actions,
        "demo",
        serve.demo,
        "a plan on a farm of this machine whose parts are killed, and the books (two minutes)",
    )
    demo.add_argument("--folder", type=Path, metavar="DIR", help="an empty or new one (default: a temporary one)")
    demo.add_argument("--fast", action="store_true", help="fewer and shorter tasks, and no training")

    down = add_farm_command(actions, "down", serve.down, "end the farm that runs on this machine")
    down.add_argument("--home", type=Path, metavar="DIR", help="as for up")

    add_farm(
        add_farm_command(
            actions,
            "sign-in",
            serve.sign_in,
            "print a link to the farm's page: it signs a browser in once, within ten minutes",
        )
    )


def _add_strategy(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--strategy",
        metavar="NAME",
        help="what chooses between workers that have room: cheapest, fair_share, fastest, least_loaded, locality, round_robin, or "
        "one that an installed package adds (default: fair_share)",
    )


def _add_tls(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tls-cert",
        type=Path,
        metavar="FILE",
        help="the coordinator's certificate (PEM); `dtf farm cert issue` makes one",
    )
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="that certificate's private key (PEM)")
    parser.add_argument(
        "--client-ca", type=Path, metavar="FILE", help="authority of workers' certificates (PEM), which they need then"
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        default=None,
        help="listen on more than this machine without TLS: others can read the farm's tokens then",
    )


def _add_coordinator(actions: Commands) -> None:
    coordinator = add_farm_command(
        actions, "coordinator", serve.coordinator, "one coordinator; any number of them, all alike"
    )
    coordinator.add_argument("--config", type=Path, metavar="FILE", help="coordinator.yaml; options win over it")
    coordinator.add_argument("--name", dest="named", metavar="NAME", help="(default: the machine's name)")
    coordinator.add_argument("--farm-name", metavar="NAME", help="one etcd can hold several farms (default: farm)")
    coordinator.add_argument("--host", help="where it listens; 0.0.0.0: everywhere, with TLS (default: 127.0.0.1)")
    coordinator.add_argument("--port", type=int, help=f"0: a free one (default: {serve.PORT})")
    coordinator.add_argument(
        "--folder", type=Path, metavar="DIR", help="of the farm's files; all its coordinators share it"
    )
    coordinator.add_argument(
        "--archive", metavar="URL", help="of results, for fsspec, or a folder (default: DIR/archive)"
    )
    coordinator.add_argument(
        "--worker-grace",
        type=float,
        metavar="SECONDS",
        help="for which a worker may be away before its tasks go elsewhere (default: 4)",
    )
    coordinator.add_argument(
        "--advertise",
        metavar="URL",
        help="where workers and clients reach it, if not where it listens: a name of it, a tunnel's or a proxy's near end",
    )
    _add_strategy(coordinator)
    coordinator.add_argument("--token-file", type=Path, metavar="FILE", help="made if it is not there")
    _add_tls(coordinator)
    coordinator.add_argument(
        "--allow-pickle",
        action=argparse.BooleanOptionalAction,
        help="take functions that travel by cloudpickle (default: no)",
    )
    add_connection(coordinator)


def _add_worker(actions: Commands) -> None:
    worker = add_farm_command(actions, "worker", serve.worker, "offer this machine to a farm")
    worker.add_argument("--config", type=Path, metavar="FILE", help="worker.yaml; options win over it")
    worker.add_argument(
        "--coordinator",
        metavar="URL",
        help="of one coordinator or more, with commas (default: as --farm of other commands)",
    )
    worker.add_argument("--token-file", type=Path, metavar="FILE", help="holds the farm's token, or one to join with")
    for name, text in (
        (
            "ca",
            "certificate of the authority of an https farm (default: $DTF_FARM_CA, or those that this machine knows)",
        ),
        ("client-cert", "the worker's own certificate, for farms that ask for one"),
        ("client-key", "that certificate's private key"),
    ):
        worker.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"{text}; PEM")
    worker.add_argument("--name", dest="named", metavar="NAME", help="(default: the machine's name)")
    worker.add_argument(
        "--folder", type=Path, metavar="DIR", help="where it works and keeps results (default: in the farm's home)"
    )
    worker.add_argument(
        "--secrets",
        type=Path,
        metavar="DIR",
        help="folder with a file for each secret that tasks may name; its owner's only",
    )
    worker.add_argument(
        "--cache",
        type=float,
        metavar="GIB",
        help="of inputs and what tasks download, kept for the next tasks (default: 20)",
    )
    worker.add_argument(
        "--until-idle",
        type=duration,
        metavar="TIME",
        help="leave after having had no task for so long, such as 10m, as a pilot job does (default: stay)",
    )
    worker.add_argument("--cpus", type=float, metavar="N", help="cores that it offers (default: all)")
    worker.add_argument(
        "--memory", type=float, metavar="MIB", help="memory that it offers (default: what this machine has)"
    )
    worker.add_argument(
        "--label", action="append", default=[], metavar="LABEL", help="what tasks may ask for; several times"
    )


def _add_tasks(actions: Commands) -> None:
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


def _add_pool(actions: Commands) -> None:
    workers = add_farm_command(actions, "workers", _workers, "the farm's workers, and what they are at")
    add_json(workers)
    add_farm(workers)
    for name, text in (
        ("drain", "let a worker finish what it runs, and end"),
        ("cordon", "give a worker nothing more; what runs there goes on"),
        ("uncordon", "give a worker tasks again"),
    ):
        command = add_farm_command(actions, name, _change_worker, text)
        command.add_argument("worker", metavar="WORKER")
        command.set_defaults(change=name)
        add_farm(command)
    status = add_farm_command(actions, "status", _status, "the farm in numbers")
    add_json(status)
    add_farm(status)


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


def _workers(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        workers = farm.workers()
    if arguments.json:
        print(json.dumps(workers))
        return DONE
    rows = []
    for worker in workers:
        devices = worker["capabilities"]["devices"]
        offered = ", ".join(f"{amount:g} {resource}" for resource, amount in sorted(devices.items()))
        labels = " ".join(worker["capabilities"]["labels"])
        rows.append(
            (worker["worker_id"], worker["status"], str(len(worker["metadata"]["tasks"])), f"{offered} {labels}")
        )
    print_table(("WORKER", "STATUS", "TASKS", "OFFERS"), rows)
    return DONE


def _change_worker(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        told = farm.change_worker(arguments.worker, arguments.change)
    print(f"{told['worker_id']}: {told['status']}{', cordoned' if told['metadata']['cordoned'] else ''}")
    return DONE


def _status(arguments: argparse.Namespace) -> int:
    with connect(arguments) as farm:
        status = farm.status()
    if arguments.json:
        print(json.dumps(status))
        return DONE
    tasks = ", ".join(f"{number} {state}" for state, number in sorted(status["tasks"].items())) or "none"
    print(f"farm {status['farm']}: {status['workers']} workers, tasks: {tasks}")
    for warning in status["warnings"]:
        print(f"warning: {warning}")
    print(
        f"leader: {status['leader'] or 'nobody'}; asked: {status['coordinator']}, up for {status['uptime_seconds']:.0f} s"
    )
    return DONE


def _what(task: TaskInfo) -> str:
    command = (task.raw.get("parameters") or {}).get("command") or []
    name = task.raw.get("name") or ""
    return str(name) or " ".join(map(str, command))


def _where(task: TaskInfo) -> str:
    return str(task.raw.get("worker_id") or "")
