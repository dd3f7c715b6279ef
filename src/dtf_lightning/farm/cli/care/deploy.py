"""`dtf farm deploy TARGET`: files by which a farm is installed and kept running."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from dtf_lightning.cli.main import DONE
from dtf_lightning.cli.options import Commands
from dtf_lightning.farm.cli.options import add_farm_command, add_json

OPTIONS = {
    "address": (
        "HOST",
        str,
        "name under which a coordinator is reached, as its certificate has it (default: farm.lab)",
    ),
    "port": ("PORT", int, "of coordinators (default: `server.port` of coordinator.yaml)"),
    "coordinators": ("N", int, "how many (default: 3)"),
    "namespace": ("NAME", str, "of Kubernetes (default: dtf-farm)"),
    "image": ("NAME", str, "of containers, without -ROLE and tag (default: registry.example.com/dtf-farm)"),
    "base": (
        "IMAGE",
        str,
        "of which images are built; it has Python 3.11 or newer (default: python:3.11-slim-bookworm)",
    ),
    "package": ("REQUIREMENT", str, "that pip installs (default: dtf-lightning[farm] of this version)"),
    "user": ("NAME", str, "of the services (default: dtf-farm)"),
}
"""Option -> how it is written, its type, its meaning; each is a field of the deployment."""


def add_deploy(actions: Commands) -> None:
    """Add the command."""
    parser = add_farm_command(
        actions,
        "deploy",
        _deploy,
        "write files by which a farm is installed: units, images, manifests, pilot jobs, CI jobs; no secret is in them",
    )
    parser.add_argument(
        "target", metavar="TARGET", help="systemd, docker, kubernetes, slurm, launchd, windows, github or gitlab"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the files go")
    parser.add_argument("--config", type=Path, metavar="FILE", help="coordinator.yaml whose settings are to hold")
    parser.add_argument("--worker-config", type=Path, metavar="FILE", help="worker.yaml whose settings are to hold")
    for name, (metavar, kind, text) in OPTIONS.items():
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=text)
    parser.add_argument(
        "--etcd",
        metavar="HOST:PORT,...",
        help="etcd's members (default: `etcd.endpoint`, else what the target brings along)",
    )
    parser.add_argument(
        "--workers",
        action="append",
        default=[],
        metavar="NAME[:KEY=VALUE,...]",
        help="a class of workers: replicas, cpus, memory (MiB), gpus, every_node=true; several times (default: worker:replicas=2)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite files that have another content")
    add_json(parser)


def _deploy(arguments: argparse.Namespace) -> int:
    from dtf_lightning.farm.deploy.files import write_files
    from dtf_lightning.farm.deploy.render import deployment_of, render_target
    from dtf_lightning.farm.deploy.settings_files import Wanted
    from dtf_lightning.farm.settings.coordinator import CoordinatorSettings
    from dtf_lightning.farm.settings.hosts import is_remote
    from dtf_lightning.farm.settings.worker import WorkerSettings

    coordinator = CoordinatorSettings.load(arguments.config)
    worker = WorkerSettings.load(arguments.worker_config)
    etcd = arguments.etcd or coordinator.etcd.endpoint or ""
    told = {
        "farm": coordinator.farm.name,
        "port": coordinator.server.port,
        "etcd": tuple(filter(None, etcd.split(","))),
        **{name: url for name in ("archive", "artifacts") if is_remote(url := getattr(coordinator, name).url)},
        **{name: value for name in OPTIONS if (value := getattr(arguments, name)) is not None},
    }
    if arguments.workers:
        told["workers"] = tuple(_worker_class(text) for text in arguments.workers)
    wanted = Wanted(deployment=deployment_of(**told), coordinator=coordinator, worker=worker)
    files = render_target(arguments.target, wanted)
    places = write_files(arguments.output, files, force=arguments.force)
    if arguments.json:
        print(json.dumps([str(place) for place in places]))
        return DONE
    for place in places:
        print(place)
    return DONE


def _worker_class(text: str) -> dict[str, str]:
    """Return a class of workers as the deployment's model reads it, which says what does not fit."""
    name, _, rest = text.partition(":")
    pairs = (pair.partition("=") for pair in rest.split(",") if pair)
    return {"name": name, **{key.strip(): value.strip() for key, _, value in pairs}}
