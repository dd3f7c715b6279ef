"""Commands that run a farm's processes: `up`, `down`, `coordinator`, `worker`."""

from __future__ import annotations

import argparse
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING

from dtf_lightning.cli.main import DONE, FAILED, INTERRUPTED
from dtf_lightning.cli.options import connect_to_etcd

if TYPE_CHECKING:
    from dtf_lightning.farm.home import FarmHome

PORT = 8080


def up(arguments: argparse.Namespace) -> int:
    """Run a farm of this machine until Ctrl-C."""
    from dtf_lightning.farm.up import detach, run_farm

    home = _home(arguments.home)
    if arguments.detach:
        return detach(home, arguments.port, say=print)
    try:
        run_farm(home, arguments.port, say=print)
    except KeyboardInterrupt:
        return INTERRUPTED
    return DONE


def down(arguments: argparse.Namespace) -> int:
    """End the farm that runs here."""
    from dtf_lightning.farm.up import end_farm

    return DONE if end_farm(_home(arguments.home), say=print) else FAILED


def coordinator(arguments: argparse.Namespace) -> int:
    """Run a coordinator until SIGTERM or Ctrl-C."""
    from dtf_lightning.farm.server.main import CoordinatorOptions, run_coordinator
    from dtf_lightning.farm.tokens import make_token

    _log()
    folder: Path = arguments.folder.absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = arguments.named or socket.gethostname()
    options = CoordinatorOptions(
        farm=arguments.farm_name,
        name=name,
        host=arguments.host,
        port=arguments.port,
        folder=folder,
        token=make_token(arguments.token_file),
        audit=folder / f"audit-{name}.jsonl",
        archive=arguments.archive,
        worker_grace=arguments.worker_grace,
    )
    with connect_to_etcd(arguments) as store:
        run_coordinator(store, options, _say)
    return DONE


def worker(arguments: argparse.Namespace) -> int:
    """Offer this machine until it is drained or stopped."""
    from dtf_lightning.farm.home import find_farm
    from dtf_lightning.farm.tokens import read_token
    from dtf_lightning.farm.worker.offer import offer_of_this_machine
    from dtf_lightning.farm.worker.service.farm_worker import WorkerOptions
    from dtf_lightning.farm.worker.service.main import run_worker

    _log()
    address = find_farm(arguments.coordinator, arguments.token_file)
    name = arguments.named or socket.gethostname()
    folder = arguments.folder or _home(None).folder / "workers" / name
    offer = offer_of_this_machine(folder, cpus=arguments.cpus, memory=arguments.memory, labels=tuple(arguments.label))
    options = WorkerOptions(
        name=name,
        folder=folder,
        addresses=address.urls,
        token=read_token(address.token_file),
        devices=offer.devices,
        device_names=offer.names,
        labels=offer.labels,
        cache_bytes=int(arguments.cache * (1 << 30)),
        secrets=arguments.secrets.absolute() if arguments.secrets is not None else None,
    )
    run_worker(options, _say)
    return DONE


def _home(folder: Path | None) -> FarmHome:
    from dtf_lightning.farm.home import FarmHome

    return FarmHome(folder=folder.absolute()) if folder is not None else FarmHome.default()


def _say(line: str) -> None:
    print(line, flush=True)


def _log() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
