"""Commands that run a farm's processes: `up`, `down`, `coordinator`, `worker`; and the link to a farm's page."""

from __future__ import annotations

import argparse
import logging
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtf_lightning import environment
from dtf_lightning.cli.main import DONE, FAILED, INTERRUPTED
from dtf_lightning.errors import SettingsError

if TYPE_CHECKING:
    from dtf_lightning.etcd.etcd_store import EtcdStore
    from dtf_lightning.farm.home import FarmHome
    from dtf_lightning.farm.settings.coordinator import CoordinatorSettings

PORT = 8080


def up(arguments: argparse.Namespace) -> int:
    """Run a farm of this machine until Ctrl-C."""
    from dtf_lightning.farm.settings.coordinator import CoordinatorSettings
    from dtf_lightning.farm.strategies import strategy_named
    from dtf_lightning.farm.up import Reach, detach, run_farm

    strategy = arguments.strategy or CoordinatorSettings().load_balancer.strategy
    strategy_named(strategy)
    reach = Reach(
        host=arguments.host,
        port=arguments.port,
        ca=arguments.ca.absolute() if arguments.ca else None,
        more=_words_of(arguments, ("advertise", "tls_cert", "tls_key", "client_ca", "insecure", "allow_pickle")),
    )
    home = _home(arguments.home)
    if arguments.detach:
        return detach(home, reach, say=print, strategy=strategy)
    try:
        run_farm(home, reach, say=print, strategy=strategy)
    except KeyboardInterrupt:
        return INTERRUPTED
    return DONE


def _words_of(arguments: argparse.Namespace, options: Sequence[str]) -> tuple[str, ...]:
    """Return those options that were given, as words of a command line; files by their whole paths."""
    words: list[str] = []
    for option in options:
        told = getattr(arguments, option)
        if told:
            value = str(told.absolute()) if isinstance(told, Path) else str(told)
            words += [f"--{option.replace('_', '-')}"] + ([] if told is True else [value])
    return tuple(words)


def demo(arguments: argparse.Namespace) -> int:
    """Play a plan on a farm whose parts are killed and frozen."""
    from dtf_lightning.farm.demo.run import FAST, DemoSize, run_demo

    try:
        return run_demo(arguments.folder, size=FAST if arguments.fast else DemoSize(), say=_say)
    except KeyboardInterrupt:
        _say("dtf farm demo: interrupted; every process that it started has ended")
        return INTERRUPTED


def down(arguments: argparse.Namespace) -> int:
    """End the farm that runs here."""
    from dtf_lightning.farm.up import end_farm

    return DONE if end_farm(_home(arguments.home), say=print) else FAILED


def coordinator(arguments: argparse.Namespace) -> int:
    """Run a coordinator until SIGTERM or Ctrl-C."""
    from dtf_lightning.farm.server.main import CoordinatorOptions, run_coordinator
    from dtf_lightning.farm.settings.coordinator import CoordinatorSettings
    from dtf_lightning.farm.strategies import strategy_named
    from dtf_lightning.farm.tokens import make_token

    settings = CoordinatorSettings.load(arguments.config, given_settings(arguments, COORDINATOR_OPTIONS))
    name = settings.high_availability.coordinator_id or socket.gethostname()
    settings.logging.begin(coordinator=name, farm=settings.farm.name)
    _warn(settings.warnings)
    strategy_named(settings.load_balancer.strategy)
    if settings.farm.folder is None:
        raise SettingsError(
            "where the farm's files lie is not said: give --folder DIR, or `folder` in the section `farm`"
        )
    if settings.security.token_file is None:
        raise SettingsError(
            "no file for the farm's token: give --token-file FILE, or `token_file` in the section `security`"
        )
    folder = settings.path(settings.farm.folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    options = CoordinatorOptions(
        farm=settings.farm.name,
        name=name,
        host=settings.server.host,
        port=settings.server.port,
        folder=folder,
        token=make_token(settings.path(settings.security.token_file)),
        audit=folder / f"audit-{name}.jsonl",
        settings=settings,
    )
    with connect_etcd(settings) as store:
        run_coordinator(store, options, _say)
    return DONE


def connect_etcd(settings: CoordinatorSettings) -> EtcdStore:
    """Connect to the etcd of a coordinator's settings. Raises what `EtcdAccess.connect` raises."""
    from dtf_lightning.etcd.access import EtcdAccess

    etcd = settings.etcd
    access = EtcdAccess(
        **{
            name: settings.path(told) if (told := getattr(etcd, name)) else None
            for name in ("ca_cert", "cert", "key", "password_file")
        },
        server_name=etcd.server_name,
        user=etcd.user,
    )
    return access.connect(etcd.endpoint or environment.etcd_endpoint(), quiet=True)


def worker(arguments: argparse.Namespace) -> int:
    """Offer this machine until it is drained or stopped."""
    from dtf_lightning.farm.home import find_farm
    from dtf_lightning.farm.security.trust import Trust
    from dtf_lightning.farm.settings.worker import OF_COORDINATORS, WorkerSettings
    from dtf_lightning.farm.tokens import read_token
    from dtf_lightning.farm.worker.offer import offer_of_this_machine
    from dtf_lightning.farm.worker.service.credentials import worker_token
    from dtf_lightning.farm.worker.service.farm_worker import WorkerOptions
    from dtf_lightning.farm.worker.service.main import run_worker

    settings = WorkerSettings.load(arguments.config, given_settings(arguments, WORKER_OPTIONS))
    settings.logging.begin(worker=settings.worker.id or settings.worker.name or socket.gethostname())
    for name in (*settings.secret_variables, *OF_COORDINATORS):
        environment.remove(name)  # or every task would have it from the worker
    _warn(settings.warnings)
    who, execution, reached = settings.worker, settings.execution, settings.coordinator
    token_file = settings.path(reached.token_file) if reached.token_file else None
    files = {
        name: settings.path(told) if told else None
        for name, told in (("ca", reached.ca_cert), ("cert", reached.cert), ("key", reached.key))
    }
    address = find_farm(reached.url, token_file, Trust(**files))
    name = who.id or who.name or socket.gethostname()
    working = settings.path(execution.working_dir) if execution.working_dir else None
    folder = working or _home(None).folder / "workers" / name
    labels = (*who.labels, f"name={who.name}") if who.name else who.labels
    offer = offer_of_this_machine(
        folder, cpus=who.cpus, at_most=execution.concurrent_tasks, memory=who.memory, labels=labels
    )
    token = reached.api_key if reached.api_key and not token_file else read_token(address.token_file)
    options = WorkerOptions(
        name=name,
        folder=folder,
        addresses=address.urls,
        token=worker_token(token, name, folder, address.urls, address.trust),
        devices=offer.devices,
        device_names=offer.names,
        labels=offer.labels,
        host=who.hardware_id or socket.gethostname(),
        timeout=execution.timeout,
        cache=settings.path(execution.cache_dir) if execution.cache_dir else None,
        metrics_interval=settings.reporting.metrics_interval,
        thresholds={
            "cpu_percent": settings.health.cpu_threshold,
            "memory_percent": settings.health.memory_threshold,
            "disk_percent": settings.health.disk_threshold,
        },
        health_interval=settings.health.report_interval,
        allow_pickle=execution.allow_pickle is not False,
        until_idle=execution.until_idle,
        cache_bytes=int(execution.cache_limit * (1 << 30)),
        secrets=settings.path(execution.secrets_dir) if execution.secrets_dir else None,
        trust=address.trust,
    )
    run_worker(options, _say)
    return DONE


def sign_in(arguments: argparse.Namespace) -> int:
    """Print a link to the farm's page that signs a browser in."""
    import time

    from dtf_lightning.farm.home import find_farm
    from dtf_lightning.farm.sign_in import SignIn
    from dtf_lightning.farm.tokens import read_token

    address = find_farm(arguments.farm, arguments.token_file)
    token = read_token(address.token_file)
    if token.count(".") == 2:
        raise SettingsError(
            f"links are made with the farm's own token, and {address.token_file} holds one that the farm has signed: open "
            f"{address.urls[0]}/sign-in and give it there"
        )
    print(SignIn(token).link(address.urls[0], time.time()))
    return DONE


COORDINATOR_OPTIONS = {
    "named": "high_availability.coordinator_id",
    "farm_name": "farm.name",
    "host": "server.host",
    "port": "server.port",
    "advertise": "server.advertise",
    "folder": "farm.folder",
    "archive": "archive.url",
    "worker_grace": "health_monitor.worker_grace",
    "strategy": "load_balancer.strategy",
    "token_file": "security.token_file",
    "tls_cert": "security.tls_cert",
    "tls_key": "security.tls_key",
    "client_ca": "security.client_ca",
    "insecure": "security.insecure",
    "allow_pickle": "security.allow_pickle",
    "secrets_key": "secrets.key_file",
    "endpoint": "etcd.endpoint",
    "ca_cert": "etcd.ca_cert",
    "cert": "etcd.cert",
    "key": "etcd.key",
    "server_name": "etcd.server_name",
    "user": "etcd.user",
    "password_file": "etcd.password_file",
}
"""Option of `dtf farm coordinator` -> key of its settings."""

WORKER_OPTIONS = {
    "coordinator": "coordinator.url",
    "token_file": "coordinator.token_file",
    "ca": "coordinator.ca_cert",
    "client_cert": "coordinator.cert",
    "client_key": "coordinator.key",
    "named": "worker.id",
    "folder": "execution.working_dir",
    "secrets": "execution.secrets_dir",
    "cache": "execution.cache_limit",
    "until_idle": "execution.until_idle",
    "cpus": "worker.cpus",
    "memory": "worker.memory",
    "label": "worker.labels",
}
"""Option of `dtf farm worker` -> key of its settings."""


def given_settings(arguments: argparse.Namespace, options: Mapping[str, str]) -> dict[str, Any]:
    """Return what was given on the command line, by keys of settings; paths from the working folder."""
    from dtf_lightning.farm.settings.hosts import is_remote

    given = {}
    for option, key in options.items():
        value = getattr(arguments, option)
        if isinstance(value, Path) or (option == "archive" and value and not is_remote(value)):
            value = str(Path(value).absolute())
        elif isinstance(value, list):
            value = tuple(value) or None
        given[key] = value
    return given


def _warn(warnings: Sequence[str]) -> None:
    for warning in warnings:
        logging.getLogger(__name__).warning("%s", warning)


def _home(folder: Path | None) -> FarmHome:
    from dtf_lightning.farm.home import FarmHome

    return FarmHome(folder=folder.absolute()) if folder is not None else FarmHome.default()


def _say(line: str) -> None:
    print(line, flush=True)
