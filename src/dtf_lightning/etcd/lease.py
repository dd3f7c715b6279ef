"""`EtcdLease` is a lease that a thread keeps alive.

Rules:
- The lease counts as lost when etcd says so, or when it went unrenewed for its TTL by our own monotonic clock, counted
  from before the last renewal was sent. Then etcd may still hold it for a while: lost means "no longer surely ours".
- A renewal is tried every third of the TTL, and much more often once one has failed, on the next server.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable

from dtf_lightning.errors import LeaseLost, StoreError, StoreUnavailable
from dtf_lightning.etcd.client import Client
from dtf_lightning.etcd.wire import messages as pb
from dtf_lightning.etcd.wire import rpc
from dtf_lightning.etcd.wire._grpc import ResponseStream, grpc
from dtf_lightning.etcd.wire.failures import TRANSIENT, CallFailure, classify, describe

log = logging.getLogger(__name__)

RETRY = 0.05
"""Seconds between renewals after one has failed."""
LONGEST_RENEWAL = 1.0
REVOKE_TIMEOUT = 1.0
"""Seconds for a revocation, which is a courtesy: without it the lease expires by itself."""


class EtcdLease:
    """An implementation of `Lease` on a real etcd."""

    def __init__(
        self, client: Client, lease_id: int, ttl: float, granted_at: float, on_lost: Callable[[], None] | None
    ) -> None:
        self._client = client
        self._id = lease_id
        self._ttl = ttl
        self._expires = granted_at + ttl
        self._on_lost = on_lost
        self._lost = False
        self._stop = threading.Event()
        self._renewal: ResponseStream | None = None
        self._thread = threading.Thread(target=self._run, name=f"etcd-lease {lease_id:x}", daemon=True)
        self._thread.start()

    @property
    def id(self) -> int:
        return self._id

    @property
    def ttl(self) -> float:
        return self._ttl

    @property
    def lost(self) -> bool:
        return self._lost

    def revoke(self) -> None:
        if self._stop.is_set():
            return
        self.abandon()
        try:
            self._client.call(
                rpc.LEASE_REVOKE,
                pb.LeaseRevokeRequest(ID=self._id),
                what=f"revoking lease {self._id:x}",
                timeout=REVOKE_TIMEOUT,
            )
        except LeaseLost:
            pass  # it is gone, as wanted
        except StoreError as error:
            log.info("lease %x was not revoked and expires within %.0f s: %s", self._id, self._ttl, error)

    def abandon(self) -> None:
        self._stop.set()
        if (renewal := self._renewal) is not None:
            renewal.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join(2 * LONGEST_RENEWAL)

    def _run(self) -> None:
        wait = self._ttl / 3
        while not self._stop.wait(wait):
            sent = time.monotonic()
            try:
                ttl = self._renew()
            except LeaseLost as error:
                self._lose(str(error))
                break
            except (grpc.RpcError, StoreError, ValueError) as error:
                if self._client.closed:
                    break
                if time.monotonic() >= self._expires:
                    self._lose(f"unrenewed for its {self._ttl:.0f} s ({error})")
                    break
                wait = RETRY
            else:
                self._expires = sent + ttl
                wait = ttl / 3

    def _renew(self) -> float:
        """Renew the lease by a short stream (a long one would need a watchdog); return the seconds that it has now."""
        server = self._client.current
        limit = min(LONGEST_RENEWAL, self._ttl / 3)
        request = pb.LeaseKeepAliveRequest(ID=self._id)
        self._renewal = renewal = self._client.open_stream(
            rpc.LEASE_KEEP_ALIVE, itertools.chain([request]), server=server, timeout=limit
        )
        try:
            for response in renewal:
                if response.TTL <= 0:
                    raise LeaseLost(f"lease {self._id:x}: etcd says that it is gone, with every key under it")
                return float(response.TTL)
            raise StoreUnavailable(f"renewing lease {self._id:x}: the stream ended without an answer")
        except grpc.RpcError as error:
            self._renewal_failed(server, error)
            raise
        finally:
            renewal.cancel()
            self._renewal = None

    def _renewal_failed(self, server: int, error: grpc.RpcError) -> None:
        log.debug("renewing lease %x: %s", self._id, describe(error))
        failure = classify(error, has_token=self._client.identity is not None)
        if failure is CallFailure.LEASE_GONE:
            raise LeaseLost(f"lease {self._id:x}: {describe(error)}") from error
        if failure is CallFailure.STALE_TOKEN:
            self._client.forget_current_token()
        elif failure in TRANSIENT and not self._stop.is_set():
            self._client.leave(server)
            if failure is CallFailure.NOT_CONNECTED:
                self._client.wait_for_connection(RETRY)

    def _lose(self, reason: str) -> None:
        if self._stop.is_set():
            return
        log.warning("lease %x is lost: %s", self._id, reason)
        self._lost = True
        if self._on_lost is not None:
            self._on_lost()
