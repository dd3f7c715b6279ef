"""The commands of `dtf farm`. Each is an adapter: it imports what it needs when it is called."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands, add_connection
from dtf_lightning.farm.cli import serve
from dtf_lightning.farm.cli.api.nodes import add_nodes
from dtf_lightning.farm.cli.api.openapi import add_openapi
from dtf_lightning.farm.cli.artifacts import add_artifacts
from dtf_lightning.farm.cli.care.commands import add_care
from dtf_lightning.farm.cli.options import (
    add_farm,
    add_farm_command,
    add_json,
    connect,
    duration,
)
from dtf_lightning.farm.cli.page.commands import add_page
from dtf_lightning.farm.cli.results import add_results
from dtf_lightning.farm.cli.schedules.commands import add_schedules
from dtf_lightning.farm.cli.security.commands import add_security
from dtf_lightning.farm.cli.settings.config import add_config
from dtf_lightning.farm.cli.sharing import add_sharing
from dtf_lightning.farm.cli.tables import print_table
from dtf_lightning.farm.cli.tasks import add_tasks
from dtf_lightning.farm.cli.train import add_train
from dtf_lightning.farm.cli.verdicts.commands import add_verdicts


def register(commands: Commands) -> None:
    """Add them to the parser."""
    farm = commands.add_parser("farm", help="a pool of machines that runs tests and benchmarks")
    actions = farm.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_processes(actions)
    _add_coordinator(actions)
    _add_worker(actions)
    add_tasks(actions)
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
    coordinator.add_argument(
        "--secrets-key",
        type=Path,
        metavar="FILE",
        help="of keys with which the farm seals secrets (`dtf farm secret new-key`)",
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
