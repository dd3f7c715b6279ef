"""`EtcdWatch` is a watch that outlives connections: every event once, in order, or an error that says why not.

Rules:
- The stream is opened anew from the last delivered event's revision + 1, and from nothing else. A header's revision is
  no proof that all events up to it have been sent (etcd #15220).
- A server that says nothing for `SILENCE` seconds, or that a call has just given up, is asked for its status; no answer
  within `PROBE` and the watch moves on. TCP and keep-alive pings notice a frozen process much later, or never.
- `hasleader` makes etcd end the stream when its member has lost the quorum: silence would look like "nothing changed".
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from dtf_lightning.errors import AuthenticationFailed, StoreError, StoreUnavailable, WatchCompacted
from dtf_lightning.etcd.client import MAX_AUTHENTICATIONS, Client
from dtf_lightning.etcd.store import EventKind, KeyValue, WatchEvent
from dtf_lightning.etcd.wire import messages as pb
from dtf_lightning.etcd.wire import rpc
from dtf_lightning.etcd.wire._grpc import grpc
from dtf_lightning.etcd.wire.failures import TRANSIENT, CallFailure, classify, describe

log = logging.getLogger(__name__)

SILENCE = 3.0
PROBE = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5
_KINDS = {pb.EventType.PUT: EventKind.PUT, pb.EventType.DELETE: EventKind.DELETE}


class EtcdWatch:
    """An implementation of `Watch` on a real etcd. One thread reads the stream; grpc's thread for requests also probes."""

    def __init__(self, client: Client, key: bytes, range_end: bytes, start_revision: int) -> None:
        self._client = client
        self._key = key
        self._range_end = range_end
        self._next_revision = start_revision
        self._refusals = 0
        self._pause = _FIRST_PAUSE
        self._changed = threading.Condition()
        self._batches: deque[tuple[WatchEvent, ...]] = deque()
        self._error: StoreError | None = None
        self._cancelled = False
        self._stream: _Stream | None = None
        self._thread = threading.Thread(target=self._run, name=f"etcd-watch {key.decode()}", daemon=True)
        self._thread.start()

    def get(self, timeout: float | None = None) -> tuple[WatchEvent, ...] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._batches or self._error or self._cancelled, timeout)
            if self._cancelled:
                return None
            if self._batches:
                return self._batches.popleft()
            if self._error is not None:
                raise self._error
            return ()

    def cancel(self) -> None:
        with self._changed:
            self._cancelled = True
        self._end()

    def fail(self, error: StoreError) -> None:
        """Let `get` raise this error once it has given out what has arrived. The first failure counts."""
        with self._changed:
            self._error = self._error or error
        self._end()

    def _end(self) -> None:
        with self._changed:
            stream = self._stream
            self._changed.notify_all()
        if stream is not None:
            stream.close()
        if threading.current_thread() is not self._thread:
            self._thread.join(PROBE + 1.0)

    def _ended(self) -> bool:
        return self._cancelled or self._error is not None

    # --- the thread --------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._ended():
            server = self._client.current
            try:
                self._follow(server)
            except grpc.RpcError as error:
                self._stream_failed(server, error)
            except StoreUnavailable as error:  # no token to be had
                log.debug("watch of %s: %s", self._key.decode(), error)
            except StoreError as error:
                self.fail(error)
            except ValueError:  # grpc's answer to a channel that close() has closed; it also calls fail()
                log.debug("watch of %s: channel closed", self._key.decode())
            with self._changed:
                self._stream = None
                self._changed.wait_for(self._ended, self._pause * random.uniform(0.5, 1.0))
                self._pause = min(2 * self._pause, _LONGEST_PAUSE)

    def _follow(self, server: int) -> None:
        """Deliver what this server sends, until the stream ends."""
        request = pb.WatchRequest(
            create_request=pb.WatchCreateRequest(
                key=self._key, range_end=self._range_end, start_revision=self._next_revision
            )
        )
        stream = _Stream(self._client, server, request)
        with self._changed:
            if self._ended():
                stream.close()
                return
            self._stream = stream
        try:
            for response in stream:
                if self._ended():
                    return
                if not self._take(response):
                    return
        finally:
            stream.close()

    def _take(self, response: Any) -> bool:
        """Take in a response, by which etcd also tells refusals and compactions; return whether the stream goes on."""
        if response.compact_revision:
            raise WatchCompacted(response.compact_revision)
        if response.canceled:
            self._refused(response.cancel_reason)
            return False
        self._pause, self._refusals = _FIRST_PAUSE, 0
        if response.events:
            batch = tuple(_event(event) for event in response.events)
            self._next_revision = batch[-1].kv.mod_revision + 1
            with self._changed:
                self._batches.append(batch)
                self._changed.notify_all()
        return True

    def _refused(self, reason: str) -> None:
        """Handle a refusal. Old servers say "permission denied" for a stale token too, so a fresh one is tried first."""
        self._refusals += 1
        if self._client.identity is None or self._refusals >= MAX_AUTHENTICATIONS:
            raise AuthenticationFailed(
                f"watch of {self._key.decode()!r}: etcd refused it: {reason or 'no reason given'}"
            )
        self._client.forget_current_token()

    def _stream_failed(self, server: int, error: grpc.RpcError) -> None:
        if self._ended() or self._client.closed:
            return
        failure = classify(error, has_token=self._client.identity is not None)
        log.info("watch of %s lost %s: %s", self._key.decode(), self._client.name_of(server), describe(error))
        if failure is CallFailure.STALE_TOKEN:
            self._refused(describe(error))
        elif failure in TRANSIENT:
            self._client.leave(server)
            if failure is CallFailure.NOT_CONNECTED:
                self._client.wait_for_connection(self._pause)
        else:
            kind = AuthenticationFailed if failure is CallFailure.REFUSED else StoreError
            self.fail(kind(f"watch of {self._key.decode()!r}: etcd answered {describe(error)}"))


class _Stream:
    """A watch stream to one server, ended when the server falls silent and does not answer a probe."""

    def __init__(self, client: Client, server: int, request: Any) -> None:
        self._client = client
        self._server = server
        self._request = request
        self._heard = time.monotonic()
        self._closed = False
        self._current_then = server
        self._call = client.open_stream(rpc.WATCH, self._requests(), server=server)

    def __iter__(self) -> Iterator[Any]:
        for response in self._call:
            self._heard = time.monotonic()
            yield response

    def close(self) -> None:
        with self._client.moved:
            self._closed = True
            self._client.moved.notify_all()
        self._call.cancel()

    def _requests(self) -> Iterator[Any]:
        # grpc runs this in a thread of its own. Were the iterator to end, etcd would end the stream: so it stays, and
        # the thread is put to use.
        yield self._request
        while True:
            with self._client.moved:
                patience = max(0.1, SILENCE - (time.monotonic() - self._heard))
                self._client.moved.wait_for(lambda: self._closed or self._given_up(), patience)
                if self._closed:
                    return
                ask = self._given_up() or time.monotonic() - self._heard >= SILENCE
                self._current_then = self._client.current
            if ask and not self._alive():
                self._call.cancel()
                return

    def _given_up(self) -> bool:
        """Return whether calls have moved to another server since this one was last asked."""
        return self._client.current not in (self._server, self._current_then)

    def _alive(self) -> bool:
        try:
            self._client.attempt(rpc.STATUS, pb.StatusRequest(), server=self._server, timeout=PROBE)
        except grpc.RpcError as error:
            # Any answer is a sign of life, a refusal too.
            if classify(error, has_token=False) in TRANSIENT:
                return False
        except (StoreError, ValueError):  # closed meanwhile
            return False
        self._heard = time.monotonic()
        return True


def _event(event: Any) -> WatchEvent:
    kv = event.kv
    return WatchEvent(
        _KINDS[event.type],
        KeyValue(kv.key.decode(), kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease),
    )
