"""Whether this machine has what a `coordinator.yaml` names: ports, certificates, and an etcd that answers soon enough."""

from __future__ import annotations

import contextlib
import errno
import socket
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from dtf_lightning.errors import DtfError, SettingsError
from dtf_lightning.etcd.access import EtcdAccess
from dtf_lightning.etcd.store import Store
from dtf_lightning.farm.doctor.findings import Finding, Level
from dtf_lightning.farm.record.keys import ROOT
from dtf_lightning.farm.security.certificates import Certificate, TlsFiles, server_context
from dtf_lightning.farm.settings.coordinator import CoordinatorSettings

DAY = 86400.0
SOON = 30.0
"""Days of a certificate that are worth a word."""
SLOW = 0.05
"""Seconds of a reading from etcd, which asks its quorum; some milliseconds are usual."""
READINGS = 9


def examine_settings(settings: CoordinatorSettings, endpoint: str) -> list[Finding]:
    """Check what the settings name. `endpoint`: etcd's, where they name none. Raises nothing for what may be wrong with it."""
    findings: list[Finding] = []
    for port in (settings.server.port, *settings.server.more_ports):
        if port:
            findings += check_port(settings.server.host, port, listening(settings.server.host, port))
    if (files := settings.tls_files) is not None:
        cert, key, client_ca = files
        findings += check_certificate(cert, time.time())
        findings += check_tls(TlsFiles(cert=cert, key=key, client_ca=client_ca))
    return [*findings, *_ask_etcd(settings, settings.etcd.endpoint or endpoint)]


def listening(host: str, port: int) -> str:
    """Return why nobody can listen there now; "" where one can."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
            trial.listen(1)
        except OSError as error:
            return "taken" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
    return ""


def _ask_etcd(settings: CoordinatorSettings, endpoint: str) -> Iterator[Finding]:
    etcd = settings.etcd
    try:
        access = EtcdAccess(
            **{
                name: settings.path(told) if (told := getattr(etcd, name)) else None
                for name in ("ca_cert", "cert", "key", "password_file")
            },
            server_name=etcd.server_name,
            user=etcd.user,
        )
        with access.connect(endpoint, quiet=True) as store:
            yield from check_latency(endpoint, readings(store))
    except DtfError as error:
        remedy = "is it running, and does `etcd.endpoint` name it? Its certificates are `etcd.ca_cert`, `etcd.cert` and `etcd.key`"
        yield Finding(what="etcd", level=Level.BAD, told=str(error), remedy=remedy)


def readings(store: Store) -> list[float]:
    """Return how long some readings took, in seconds; each waits for a quorum, as the farm's own do."""
    took = []
    for _ in range(READINGS):
        began = time.perf_counter()
        store.get(ROOT)
        took.append(time.perf_counter() - began)
    return took


# --- the checks ------------------------------------------------------------------------------------------------------


def check_port(host: str, port: int, problem: str) -> Iterator[Finding]:
    """Whether a coordinator could listen there."""
    if problem == "taken":
        told = f"{port} of {host} is taken, perhaps by a coordinator that runs already"
        remedy = (
            f"`dtf farm status` tells; `ss -ltnp 'sport = :{port}'` says who has it; else choose another `server.port`"
        )
        yield Finding(what="port", level=Level.WARNING, told=told, remedy=remedy)
    elif problem:
        remedy = "a port above 1023, and an address of this machine (`ip address`) or 0.0.0.0 as `server.host`"
        yield Finding(
            what="port", level=Level.BAD, told=f"nobody can listen at {host}:{port}: {problem}", remedy=remedy
        )
    else:
        yield Finding(what="port", level=Level.GOOD, told=f"{port} of {host} is free")


def check_certificate(path: Path, now: float) -> Iterator[Finding]:
    """Whether it can be read, is good, and for how long. `now`: seconds since the epoch."""
    try:
        certificate = Certificate.read(path)
    except SettingsError as error:
        yield Finding(what="certificate", level=Level.BAD, told=str(error), remedy=_new_one(path))
    else:
        yield from check_days_left(path, certificate, now)


def check_days_left(path: Path, certificate: Certificate, now: float) -> Iterator[Finding]:
    """Whether it is good, and for how long."""
    days = (certificate.until - now) / DAY
    if problem := certificate.problem(now):
        yield Finding(what="certificate", level=Level.BAD, told=f"{path}: {problem}", remedy=_new_one(path))
    elif days < SOON:
        yield Finding(
            what="certificate", level=Level.WARNING, told=f"{path} ends in {days:.0f} days", remedy=_new_one(path)
        )
    else:
        told = f"{path} is good for {days:.0f} days, for {', '.join(certificate.names)}"
        yield Finding(what="certificate", level=Level.GOOD, told=told)


def _new_one(path: Path) -> str:
    return f"`dtf farm cert issue {path.stem} --replace` where the farm has an authority of its own; running coordinators take it over"


def check_tls(files: TlsFiles) -> Iterator[Finding]:
    """Whether key and authority can be read and fit."""
    try:
        server_context(files)
    except SettingsError as error:
        remedy = "mend `security.tls_key` and `security.client_ca`; a key is its owner's, who runs the coordinator"
        yield Finding(what="tls", level=Level.BAD, told=str(error), remedy=remedy)
    else:
        yield Finding(what="tls", level=Level.GOOD, told=f"{files.key} fits the certificate")


def check_latency(endpoint: str, took: Sequence[float]) -> Iterator[Finding]:
    """Whether etcd answers soon. `took`: seconds of some readings."""
    middle, worst = statistics.median(took), max(took)
    told = f"{endpoint} answers in {middle * 1000:.1f} ms, {worst * 1000:.1f} ms at most of {len(took)}"
    if middle > SLOW:
        remedy = "members near each other, on disks that write soon (an SSD of their own): `etcdctl check perf`"
        yield Finding(
            what="etcd",
            level=Level.WARNING,
            told=f"{told}: each change of a task waits for some of these",
            remedy=remedy,
        )
    else:
        yield Finding(what="etcd", level=Level.GOOD, told=told)
