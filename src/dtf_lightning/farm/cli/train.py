"""`dtf farm train`: an elastic training that fills what is idle in the pool, and gives it back to what waits."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from dtf_lightning import environment
from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.farm.cli.options import add_farm, add_farm_command, connect, environment_of, needs_of, pairs_of
from dtf_lightning.farm.cli.orchestrate.commands import add_orchestrate
from dtf_lightning.farm.trainings import launch


def add_train(actions: Commands) -> None:
    """Add the command, and those of other work for several machines."""
    add_orchestrate(actions)
    train = add_farm_command(
        actions, "train", _train, "an elastic training that fills idle devices and gives them back to what waits"
    )
    train.add_argument("script", help="that trains: a Lightning script with ElasticCallback(), a path in this folder")
    train.add_argument("arguments", nargs=argparse.REMAINDER, metavar="ARGS", help="of the script")
    train.add_argument(
        "--workers",
        metavar="MIN:MAX",
        default="1:1",
        help="parts that it keeps, and at most has (default: %(default)s)",
    )
    train.add_argument(
        "--endpoint",
        help=f"of the etcd at which its parts meet, as the workers reach it (default: ${environment.ETCD_ENDPOINT} or "
        f"{environment.DEFAULT_ETCD_ENDPOINT})",
    )
    train.add_argument(
        "--needs", action="append", default=[], metavar="RESOURCE=AMOUNT", help="of each part; several times"
    )
    train.add_argument("--label", action="append", default=[], metavar="LABEL", help="that each worker must carry")
    train.add_argument(
        "--priority",
        type=int,
        default=launch.PRIORITY,
        help="work of at least this priority gets what is above the minimum (default: %(default)s)",
    )
    train.add_argument(
        "--suspend-for",
        type=int,
        metavar="PRIORITY",
        help="work of at least this priority gets the minimum, too: the training waits then, with its state in the run's "
        "folder, which all workers must reach (default: it keeps its minimum)",
    )
    train.add_argument("--project", default="default", help="whose share it counts against (default: %(default)s)")
    train.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="in its environment")
    train.add_argument("--python", default="python", help="that the workers have (default: %(default)s)")
    train.add_argument("--name", dest="named", metavar="NAME", default="", help="for people (default: the script)")
    train.add_argument(
        "--after", action="append", default=[], metavar="ID", help="a task that must have completed; several times"
    )
    train.add_argument(
        "--key", default="", metavar="KEY", help="whoever submits under the same key gets the same training"
    )
    train.add_argument(
        "--rdzv-conf",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the rendezvous, as of torchrun; several times",
    )
    train.add_argument("--no-source", action="store_true", help="do not take this folder's files along")
    add_farm(train)


def _train(arguments: argparse.Namespace) -> int:
    from dtf_lightning.farm.sources import pack

    endpoint = arguments.endpoint or environment.etcd_endpoint()
    with connect(arguments) as farm:
        fields: dict[str, Any] = {}
        if not arguments.no_source:
            source = pack(Path.cwd())
            if source.num_files:
                fields = {"source": farm.send_source(source), "folder": source.folder}
        print(
            farm.train(
                arguments.script,
                arguments.arguments,
                endpoint=endpoint,
                workers=launch.read_workers(arguments.workers),
                priority=arguments.priority,
                suspend_for=arguments.suspend_for,
                python=arguments.python,
                options=pairs_of(arguments.rdzv_conf, "--rdzv-conf"),
                name=arguments.named or arguments.script,
                after=arguments.after,
                key=arguments.key,
                needs=needs_of(arguments),
                environment=environment_of(arguments),
                project=arguments.project,
                **fields,
            )
        )
    return DONE
