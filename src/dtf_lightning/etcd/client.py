"""`Client` calls one etcd cluster: which server is asked, for how long, with which token, and what follows a failure.

Rules:
- One server is current; every call goes to it until it fails, then the next becomes current for all threads.
- A read or an idempotent write is tried until its deadline. Any other write is tried again only if it surely was not
  sent; else `OutcomeUnknown`.
- With several servers an attempt lasts `ATTEMPT` seconds at first, since a frozen server answers nothing, and twice as
  long after each round, since a loaded one answers late.
- The password is in no message, no repr and no log.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from dtf_lightning.errors import (
    AuthenticationFailed,
    LeaseLost,
    OutcomeUnknown,
    RevisionCompacted,
    StoreError,
    StoreFull,
    StoreUnavailable,
)
from dtf_lightning.etcd.endpoints import Endpoints
from dtf_lightning.etcd.wire import messages as pb
from dtf_lightning.etcd.wire import rpc
from dtf_lightning.etcd.wire._grpc import ResponseStream, check_not_forked, grpc
from dtf_lightning.etcd.wire.failures import TRANSIENT, CallFailure, classify, describe
from dtf_lightning.etcd.wire.tls import Tls

ATTEMPT = 0.5
"""Seconds that one server of several has for an answer. A healthy cluster answers within a few milliseconds."""
MAX_AUTHENTICATIONS = 3
"""The largest number of authentications per call. A second is needed if users change before a token is used."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.3

_CHANNEL_OPTIONS = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # close() really closes, and no other client's backoff is shared
    ("grpc.enable_http_proxy", 0),  # etcd is inside the cluster, an http_proxy is for the way out
]


@dataclass(frozen=True, slots=True)
class Identity:
    """The user and the password with which a client comes to etcd."""

    user: str
    password: str = field(repr=False)


class Client:
    """A client of one etcd cluster. Thread-safe; usable only in the process that made it."""

    def __init__(
        self, endpoints: Endpoints, *, tls: Tls | None = None, identity: Identity | None = None, timeout: float = 5.0
    ) -> None:
        self.endpoints = endpoints
        self.tls = tls
        self.identity = identity
        self.timeout = timeout
        self.closed = False
        self._lock = threading.Lock()
        self._authenticating = threading.Lock()
        self._channels: dict[int, grpc.Channel] = {}
        self._stubs: dict[tuple[int, str], Callable[..., Any]] = {}
        self.moved = threading.Condition()
        """The condition that is notified when another server becomes current."""
        self._current = 0
        self._token: str | None = None
        self.has_password_but_auth_is_off = False
        check_not_forked()

    def __repr__(self) -> str:
        return f"Client({str(self.endpoints)!r}, user={self.identity.user if self.identity else None!r})"

    # --- calls -------------------------------------------------------------------------------------------------------

    def call(
        self,
        procedure: rpc.Rpc,
        request: Any,
        *,
        what: str | Callable[[], str],
        idempotent: bool = True,
        timeout: float | None = None,
        server: int | None = None,
    ) -> Any:
        """Return etcd's response. `what` says in messages what was attempted, and is called for that. `server`: ask only this one, which may
        take its time.

        Raises `StoreUnavailable`, `OutcomeUnknown` (only if not idempotent), `AuthenticationFailed`, `LeaseLost`,
        `RevisionCompacted`, `StoreFull`, `StoreError` (etcd rejected it, the store is closed, this process was forked).
        """
        deadline = self._deadline(timeout)
        return self._call(procedure, request, what, idempotent, deadline, with_token=True, only=server)

    def attempt(
        self, procedure: rpc.Rpc, request: Any, *, server: int, timeout: float, wait_for_ready: bool = False
    ) -> Any:
        """Ask one server once, and return its response. Raises `grpc.RpcError` and `StoreError`.

        `wait_for_ready`: not even "connection refused" ends it before its timeout.
        """
        stub = self._stub(server, procedure)
        metadata = self._metadata(self._token)
        return stub(request, timeout=timeout, metadata=metadata, wait_for_ready=wait_for_ready)

    def wait_for_connection(self, timeout: float) -> None:
        """Wait until the current server can be talked to; at most `timeout` seconds.

        More than a pause: until some time after 1.76 grpc works at a connection only while a call waits for it, so that
        calls which fail at once, however many, never see a server that has come back.
        """
        try:
            self.attempt(rpc.STATUS, pb.StatusRequest(), server=self._current, timeout=timeout, wait_for_ready=True)
        except (grpc.RpcError, StoreError, ValueError):
            pass  # whoever calls next will hear the reason

    def _call(
        self,
        procedure: rpc.Rpc,
        request: Any,
        what: str | Callable[[], str],
        idempotent: bool,
        deadline: float,
        *,
        with_token: bool,
        only: int | None = None,
    ) -> Any:
        started = time.monotonic()
        pause = _FIRST_PAUSE
        attempts = authentications = 0
        last: grpc.RpcError | None = None
        while (left := deadline - time.monotonic()) > 0:
            server = self._current if only is None else only
            token = self._current_token(deadline) if with_token else None
            stub = self._stub(server, procedure)
            attempts += 1
            limit = self._attempt_limit(attempts, left) if only is None else left
            try:
                return stub(request, timeout=limit, metadata=self._metadata(token))
            except grpc.RpcError as error:
                last = error
            except ValueError:  # grpc's answer to a channel that another thread closed
                self._check_open()
                raise
            failure = classify(last, has_token=with_token and self.identity is not None)
            if failure is CallFailure.STALE_TOKEN and authentications < MAX_AUTHENTICATIONS:
                authentications += 1
                self.forget_token(token)
                continue
            if failure not in TRANSIENT:
                self._raise(failure, last, _told(what), server)
            self._check_open()
            self.leave(server)
            if failure is CallFailure.NO_ANSWER and not idempotent:
                raise OutcomeUnknown(
                    f"{_told(what)}: sent to etcd at {self.name_of(server)}, but no answer came ({describe(last)}); it may or "
                    "may not have been applied, read before writing again"
                ) from last
            # A short random pause: after a restart of etcd all agents come back at once.
            this_pause = min(pause * random.uniform(0.5, 1.0), max(0.0, deadline - time.monotonic()))
            if failure is CallFailure.NOT_CONNECTED:
                self.wait_for_connection(this_pause)
            else:
                time.sleep(this_pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        raise StoreUnavailable(
            f"{_told(what)}: no answer from etcd at {self.endpoints if only is None else self.name_of(only)} within {time.monotonic() - started:.1f} s, "
            f"{attempts} attempt{'s' if attempts != 1 else ''}"
            f"{f' (last: {describe(last)})' if last else ''}; is it running, reachable and does it have a quorum?"
        ) from last

    def _attempt_limit(self, attempts: int, left: float) -> float:
        num_servers = len(self.endpoints.addresses)
        return left if num_servers == 1 else min(left, ATTEMPT * 2 ** ((attempts - 1) // num_servers))

    def _raise(self, failure: CallFailure, error: grpc.RpcError, what: str, server: int) -> NoReturn:
        told = f"{what}: etcd at {self.name_of(server)} answered {describe(error)}"
        if failure in (CallFailure.REFUSED, CallFailure.STALE_TOKEN):
            raise AuthenticationFailed(f"{told}; {self._auth_hint(error)}") from error
        if failure is CallFailure.LEASE_GONE:
            raise LeaseLost(f"{told}; the lease has expired or was revoked, every key under it is gone") from error
        if failure is CallFailure.COMPACTED:
            raise RevisionCompacted(told) from error
        if failure is CallFailure.FULL:
            raise StoreFull(f"{told}; compact and defragment it, then switch its alarm off") from error
        if failure is CallFailure.NOT_ETCD:
            raise StoreError(f"{told}; the server at this endpoint is not an etcd v3 server") from error
        raise StoreError(told) from error

    def _auth_hint(self, error: grpc.RpcError) -> str:
        if self.identity is None:
            return "it asks for a user name and a password (or a client certificate), and none was given"
        if "permission denied" in (error.details() or ""):
            return f"the user {self.identity.user!r} lacks the permission: grant it read and write on the run's prefix"
        return f"check the password of the user {self.identity.user!r}"

    # --- streams -----------------------------------------------------------------------------------------------------

    def open_stream(
        self, procedure: rpc.Rpc, requests: Iterator[Any], *, server: int, timeout: float | None = None
    ) -> ResponseStream:
        """Return a stream to one server, which ends by itself when the server has lost the quorum."""
        token = self._current_token(self._deadline(timeout))
        stub = self._stub(server, procedure)
        stream: ResponseStream = stub(
            requests, timeout=timeout, metadata=[*self._metadata(token), ("hasleader", "true")]
        )
        return stream

    # --- servers -----------------------------------------------------------------------------------------------------

    @property
    def current(self) -> int:
        """The server that the next call asks, as an index into the endpoints."""
        return self._current

    def leave(self, server: int) -> None:
        """Make the next server current because this one failed, unless another thread has done so."""
        with self.moved:
            if self._current == server:
                self._current = (server + 1) % len(self.endpoints.addresses)
                self.moved.notify_all()

    def make_current(self, server: int) -> None:
        """Let the next call ask this server."""
        with self.moved:
            self._current = server
            self.moved.notify_all()

    def name_of(self, server: int) -> str:
        return self.endpoints.addresses[server].target

    def _stub(self, server: int, procedure: rpc.Rpc) -> Callable[..., Any]:
        check_not_forked()
        with self._lock:
            self._check_open()
            stub = self._stubs.get((server, procedure.path))
            if stub is None:
                channel = self._channels.get(server)
                if channel is None:
                    channel = self._channels[server] = self._open_channel(server)
                is_stream = procedure in (rpc.WATCH, rpc.LEASE_KEEP_ALIVE)
                make = channel.stream_stream if is_stream else channel.unary_unary
                stub = make(procedure.path, procedure.request.SerializeToString, procedure.response.FromString)
                self._stubs[server, procedure.path] = stub
            return stub

    def _open_channel(self, server: int) -> grpc.Channel:
        target, options = self.name_of(server), list[tuple[str, Any]](_CHANNEL_OPTIONS)
        if self.tls is None:
            return grpc.insecure_channel(target, options)
        if self.tls.server_name:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(*self.tls.contents()), options)

    def _check_open(self) -> None:
        if self.closed:
            raise StoreError(f"the connection to etcd at {self.endpoints} was closed by this process")

    def close(self) -> None:
        """End all calls and streams. Idempotent."""
        with self._lock:
            self.closed = True
            channels = list(self._channels.values())
            self._channels.clear()
            self._stubs.clear()
        for channel in channels:
            channel.close()

    # --- tokens ------------------------------------------------------------------------------------------------------
    # Sent as metadata of each call rather than as call credentials, which grpc refuses on channels without TLS.

    def authenticate(self, deadline: float) -> str:
        """Return a fresh token, and keep it; an empty text if etcd has authentication switched off."""
        assert self.identity is not None
        request = pb.AuthenticateRequest(name=self.identity.user, password=self.identity.password)
        what = f"authenticating as {self.identity.user!r}"
        try:
            response = self._call(rpc.AUTHENTICATE, request, what, True, deadline, with_token=False)
        except StoreError as error:
            if "authentication is not enabled" not in str(error):
                raise
            self.has_password_but_auth_is_off = True
            self._token = ""
            return ""
        token: str = response.token
        self._token = token
        return token

    @property
    def has_token(self) -> bool:
        return self._token is not None

    def forget_token(self, token: str | None) -> None:
        """Drop a token that etcd no longer takes, unless another thread has a newer one already."""
        with self._lock:
            if self._token == token:
                self._token = None

    def forget_current_token(self) -> None:
        self.forget_token(self._token)

    def _current_token(self, deadline: float) -> str | None:
        if self.identity is None:
            return None
        token = self._token
        if token is None:
            # One thread asks, the others wait for its token: a password costs the server 50 ms of bcrypt.
            if not self._authenticating.acquire(timeout=max(0.0, deadline - time.monotonic())):
                raise StoreUnavailable(f"authenticating as {self.identity.user!r}: no token in time from etcd")
            try:
                token = self._token
                if token is None:
                    token = self.authenticate(deadline)
            finally:
                self._authenticating.release()
        return token

    @staticmethod
    def _metadata(token: str | None) -> list[tuple[str, str]]:
        return [("token", token)] if token else []

    def _deadline(self, timeout: float | None) -> float:
        return time.monotonic() + (self.timeout if timeout is None else timeout)


def _told(what: str | Callable[[], str]) -> str:
    return what if isinstance(what, str) else what()
