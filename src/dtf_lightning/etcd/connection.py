"""`connect` leads from an endpoint's text to a store that works, or to an error that says what is wrong and what to do."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dtf_lightning.errors import AuthenticationFailed, SettingsError, StoreUnavailable
from dtf_lightning.etcd.endpoints import Endpoints, parse_endpoints
from dtf_lightning.etcd.wire.diagnosis import Finding, Trouble, diagnose
from dtf_lightning.etcd.wire.tls import Tls
from dtf_lightning.etcd.wire.version import EtcdVersion, Support, parse_version, version_warning

if TYPE_CHECKING:
    from dtf_lightning.etcd.client import Client
    from dtf_lightning.etcd.etcd_store import EtcdStore

log = logging.getLogger(__name__)

_PAUSE = 0.05
_PROBE = 0.5
_TLS = {Trouble.CERTIFICATE, Trouble.TLS_WANTED, Trouble.TLS_UNKNOWN}
_HOPELESS = _TLS | {Trouble.NOT_ETCD}
"""Failures for which waiting does not help."""
_WAY_OUT = "Is the endpoint right? On a single machine, `dtf etcd` starts an etcd and prints its endpoint."


def connect(
    endpoint: str,
    *,
    ca: str | Path | None = None,
    cert: str | Path | None = None,
    key: str | Path | None = None,
    server_name: str | None = None,
    user: str | None = None,
    password: str | None = None,
    timeout: float = 5.0,
    call_timeout: float = 5.0,
    quiet: bool = False,
) -> EtcdStore:
    """Return a store on the etcd at `endpoint` (see `parse_endpoints`), which has answered, has a quorum and lets us
    in.

    `timeout` is for all of that together, `call_timeout` for each later call that names none; seconds. `quiet` leaves
    out the warning about an etcd that is for local runs only, which an etcd of this machine never gets.

    Raises `SettingsError` (endpoint, certificates, a server that is too old or no etcd), `AuthenticationFailed`
    (certificate, user or password refused), `StoreUnavailable` (nobody answers, or no quorum).
    """
    endpoints = parse_endpoints(endpoint)
    tls = _tls(endpoints.secure, ca, cert, key, server_name)
    if (user is None) != (password is None):
        raise SettingsError(
            f"an etcd {'password' if user is None else 'user'} was given alone: user and password go together"
        )

    from dtf_lightning.etcd.client import Client, Identity
    from dtf_lightning.etcd.etcd_store import EtcdStore

    identity = Identity(user, password) if user is not None and password is not None else None
    client = Client(endpoints, tls=tls, identity=identity, timeout=call_timeout)
    try:
        deadline = time.monotonic() + timeout
        version = _first_answer(client, deadline)
        _check_version(version, client, quiet)
        _check_access(client, deadline)
    except BaseException:
        client.close()
        raise
    return EtcdStore(client, version)


def _tls(
    secure: bool | None,
    ca: str | Path | None,
    cert: str | Path | None,
    key: str | Path | None,
    server_name: str | None,
) -> Tls | None:
    given = ca is not None or cert is not None or key is not None
    if secure is False and given:
        raise SettingsError("certificates were given for an http:// endpoint of etcd: use https://, or give none")
    if not given and not secure:
        return None
    return Tls(
        ca=Path(ca) if ca else None,
        cert=Path(cert) if cert else None,
        key=Path(key) if key else None,
        server_name=server_name,
    )


def _first_answer(client: Client, deadline: float) -> EtcdVersion:
    """Return the version of the first server that says it is an etcd, and make that server the current one."""
    looked = False
    while True:
        reasons = []
        for server in range(len(client.endpoints.addresses)):
            answer = _ask_version(client, server, deadline, patient=looked)
            if isinstance(answer, EtcdVersion):
                client.make_current(server)
                return answer
            reasons.append(answer)
        # Waiting helps where nothing listens yet; it does not help against a wrong certificate.
        late = time.monotonic() >= deadline
        if late or not looked:
            looked = True
            findings = [diagnose(address, client.tls, _PROBE) for address in client.endpoints.addresses]
            if late or all(finding.trouble in _HOPELESS for finding in findings):
                raise _nobody_answers(client.endpoints, findings, reasons)
        time.sleep(_PAUSE)


def _ask_version(client: Client, server: int, deadline: float, *, patient: bool) -> EtcdVersion | str:
    """Return the version, or why there was no answer. `patient`: whether a connection may take its time.

    Raises for an answer that no etcd would give, and for one that will not have us.
    """
    from dtf_lightning.etcd.client import ATTEMPT
    from dtf_lightning.etcd.wire import messages as pb
    from dtf_lightning.etcd.wire import rpc
    from dtf_lightning.etcd.wire._grpc import grpc
    from dtf_lightning.etcd.wire.failures import CallFailure, classify, describe

    timeout = max(0.05, min(ATTEMPT, deadline - time.monotonic()))
    try:
        status = client.attempt(rpc.STATUS, pb.StatusRequest(), server=server, timeout=timeout, wait_for_ready=patient)
        return parse_version(status.version)
    except grpc.RpcError as error:
        failure, told = classify(error, has_token=False), describe(error)
    if failure is CallFailure.REFUSED and client.identity is not None and not client.has_token:
        client.authenticate(deadline)
        return _ask_version(client, server, deadline, patient=patient)
    if failure is CallFailure.REFUSED:
        raise AuthenticationFailed(
            f"etcd at {client.name_of(server)} does not tell us its version ({told}): give a user name and a password "
            "that it knows"
        )
    if failure in (CallFailure.NOT_ETCD, CallFailure.REJECTED):
        raise SettingsError(
            f"{client.name_of(server)} is no etcd v3 server: asked for its version it answered {told}. {_WAY_OUT}"
        )
    return told


def _nobody_answers(
    endpoints: Endpoints, findings: list[Finding], reasons: list[str]
) -> AuthenticationFailed | SettingsError | StoreUnavailable:
    tried = "; ".join(
        f"{address}: {finding.told}{f', but did not answer ({reason})' if finding.trouble is Trouble.NONE else ''}"
        for address, finding, reason in zip(endpoints.addresses, findings, reasons, strict=True)
    )
    troubles = {finding.trouble for finding in findings}
    told = f"no etcd answered. Tried {tried}.{'' if troubles <= _TLS else f' {_WAY_OUT}'}"
    if Trouble.CERTIFICATE in troubles:
        return AuthenticationFailed(told)
    return SettingsError(told) if troubles & _HOPELESS else StoreUnavailable(told)


def _check_version(version: EtcdVersion, client: Client, quiet: bool) -> None:
    if version.support is Support.NONE:
        raise SettingsError(
            f"etcd at {client.endpoints} is version {version}, which is too old: 3.5.13 or newer is needed"
        )
    warning = version_warning(version)
    # On this machine alone nothing else is lost with it: `dtf etcd` says it once, every node would say it again.
    if warning is not None and not quiet and not client.endpoints.on_this_machine:
        log.warning(warning)


def _check_access(client: Client, deadline: float) -> None:
    """Make one call that needs the quorum and, if etcd has users, the rights of one of them."""
    from dtf_lightning.etcd.wire import messages as pb
    from dtf_lightning.etcd.wire import rpc

    try:
        if client.identity is not None:
            client.authenticate(deadline)
            if client.has_password_but_auth_is_off:
                log.warning("a password was given, but etcd at %s lets everybody in", client.endpoints)
        else:
            left = max(0.05, deadline - time.monotonic())
            client.call(rpc.RANGE, pb.RangeRequest(key=b"/dtf/", keys_only=True), what="first read", timeout=left)
    except StoreUnavailable as error:
        raise StoreUnavailable(
            f"etcd at {client.endpoints} is running, but does not serve: more than half of its members must be up and "
            f"in contact (a quorum), and they are not. Start the missing members. ({error})"
        ) from error
