"""`EtcdStore`: the `Store` protocol on a real etcd."""

from __future__ import annotations

import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from dtf_lightning.errors import RevisionCompacted, StoreError
from dtf_lightning.etcd.client import Client
from dtf_lightning.etcd.etcd_maintenance import EtcdMaintenance
from dtf_lightning.etcd.lease import EtcdLease
from dtf_lightning.etcd.store import (
    PAGE,
    Compare,
    Delete,
    Get,
    KeyValue,
    Operation,
    Put,
    RangeResult,
    Txn,
    TxnResult,
    describe,
    writes,
)
from dtf_lightning.etcd.watch import EtcdWatch
from dtf_lightning.etcd.wire import messages as pb
from dtf_lightning.etcd.wire import rpc
from dtf_lightning.etcd.wire.version import EtcdVersion

log = logging.getLogger(__name__)

# Plain numbers: each costs a conversion, and a farm's small task has a dozen of them.
_TARGETS = {
    "create": (pb.CompareTarget.CREATE.value, "create_revision"),
    "mod": (pb.CompareTarget.MOD.value, "mod_revision"),
    "version": (pb.CompareTarget.VERSION.value, "version"),
    "value": (pb.CompareTarget.VALUE.value, "value"),
    "lease": (pb.CompareTarget.LEASE.value, "lease"),
}
_RESULTS = {
    "=": pb.CompareResult.EQUAL.value,
    "!=": pb.CompareResult.NOT_EQUAL.value,
    "<": pb.CompareResult.LESS.value,
    ">": pb.CompareResult.GREATER.value,
}


class EtcdStore:
    """A store on a real etcd, made by `connect`. Every call raises what `Store` and `Client.call` say."""

    def __init__(self, client: Client, version: EtcdVersion) -> None:
        self.version = version
        """The version of the server that answered first."""
        self.maintenance = EtcdMaintenance(client)
        self._client = client
        self._lock = threading.Lock()
        # A running watch or lease is held by its thread; what has ended goes by itself.
        self._watches: weakref.WeakSet[EtcdWatch] = weakref.WeakSet()
        self._leases: weakref.WeakSet[EtcdLease] = weakref.WeakSet()

    def __repr__(self) -> str:
        return f"EtcdStore({str(self._client.endpoints)!r}, etcd {self.version})"

    def __enter__(self) -> EtcdStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, key: str, *, timeout: float | None = None) -> KeyValue | None:
        response = self._client.call(rpc.RANGE, pb.RangeRequest(key=key.encode()), what=f"get {key!r}", timeout=timeout)
        return _key_value(response.kvs[0]) if response.kvs else None

    def range(
        self, prefix: str, *, revision: int = 0, page_size: int = PAGE, timeout: float | None = None
    ) -> RangeResult:
        deadline = time.monotonic() + (self._client.timeout if timeout is None else timeout)
        while True:
            try:
                return self._snapshot(prefix, revision, page_size, deadline)
            except RevisionCompacted:
                if revision:
                    raise
                log.debug("range %r: compacted between two of its pages, read again", prefix)

    def _snapshot(self, prefix: str, revision: int, page_size: int, deadline: float) -> RangeResult:
        key, range_end = prefix_range(prefix)
        kvs: list[KeyValue] = []
        while True:
            # Pages after the first are read at the first one's revision, so that together they are one snapshot.
            request = pb.RangeRequest(key=key, range_end=range_end, limit=page_size, revision=revision)
            left = max(0.0, deadline - time.monotonic())
            response = self._client.call(rpc.RANGE, request, what=f"range {prefix!r}", timeout=left)
            revision = revision or response.header.revision
            kvs.extend(map(_key_value, response.kvs))
            if not response.more:
                return RangeResult(revision, tuple(kvs))
            key = response.kvs[-1].key + b"\0"

    def count(self, prefix: str, *, timeout: float | None = None) -> int:
        key, range_end = prefix_range(prefix)
        request = pb.RangeRequest(key=key, range_end=range_end, count_only=True)
        return int(self._client.call(rpc.RANGE, request, what=f"count {prefix!r}", timeout=timeout).count)

    def put(self, key: str, value: bytes, *, lease: int = 0, timeout: float | None = None) -> int:
        request = pb.PutRequest(key=key.encode(), value=value, lease=lease)
        response = self._client.call(rpc.PUT, request, what=f"put {key!r}", timeout=timeout)
        return int(response.header.revision)

    def delete(self, key: str, *, prefix: bool = False, timeout: float | None = None) -> int:
        response = self._client.call(
            rpc.DELETE_RANGE, _delete_request(key, prefix), what=f"delete {key!r}", timeout=timeout
        )
        return int(response.deleted)

    def txn(
        self,
        compares: Iterable[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        response = self._client.call(
            rpc.TXN,
            _transaction(compares, then, otherwise),
            what=lambda: f"transaction on {describe(then)}",
            idempotent=not any(map(writes, (*then, *otherwise))),
            timeout=timeout,
        )
        return _result(then, otherwise, response, response.header.revision)

    def watch(self, prefix: str, *, start_revision: int = 0) -> EtcdWatch:
        key, range_end = prefix_range(prefix)
        if not start_revision:
            # A linearizable read says what "now" is; the server that gets the watch may be behind.
            request = pb.RangeRequest(key=key, range_end=range_end, limit=1, keys_only=True)
            response = self._client.call(rpc.RANGE, request, what=f"watch {prefix!r}")
            start_revision = response.header.revision + 1
        watch = EtcdWatch(self._client, key, range_end, start_revision)
        with self._lock:
            self._watches.add(watch)
        return watch

    def lease(self, ttl: float, *, on_lost: Callable[[], None] | None = None) -> EtcdLease:
        granted_at = time.monotonic()
        request = pb.LeaseGrantRequest(TTL=math.ceil(ttl))
        # Retried though not idempotent: a lease whose id never came is unused and expires.
        response = self._client.call(rpc.LEASE_GRANT, request, what=f"lease of {ttl:g} s")
        lease = EtcdLease(self._client, response.ID, float(response.TTL), granted_at, on_lost)
        with self._lock:
            self._leases.add(lease)
        return lease

    def close(self) -> None:
        """End the connection. Watches end with an error, leases are left to expire (revoke them first)."""
        self._client.close()
        with self._lock:
            watches, leases = list(self._watches), list(self._leases)
        for watch in watches:
            watch.fail(StoreError(f"the connection to etcd at {self._client.endpoints} was closed by this process"))
        for lease in leases:
            lease.abandon()


def prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """Return the half-open range [key, range_end) of the keys that start with `prefix`."""
    key = prefix.encode()
    if not key:
        return b"\0", b"\0"  # etcd's spelling of "all keys"
    # UTF-8 never holds 0xff, so the last byte can always be counted up.
    return key, key[:-1] + bytes([key[-1] + 1])


def _key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key.decode(), kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def _delete_request(key: str, prefix: bool) -> Any:
    if prefix:
        start, range_end = prefix_range(key)
        return pb.DeleteRangeRequest(key=start, range_end=range_end)
    return pb.DeleteRangeRequest(key=key.encode())


def _transaction(compares: Iterable[Compare], then: Sequence[Operation], otherwise: Sequence[Operation]) -> Any:
    request = pb.TxnRequest()
    _fill(request, compares, then, otherwise)
    return request


def _fill(request: Any, compares: Iterable[Compare], then: Sequence[Operation], otherwise: Sequence[Operation]) -> None:
    """Fill a message in place: one that is given to another's constructor is copied, at every level of a batch."""
    for compare in compares:
        target, field = _TARGETS[compare.target]
        request.compare.add(
            key=compare.key.encode(), target=target, result=_RESULTS[compare.op], **{field: compare.operand}
        )
    for operations, messages in ((then, request.success), (otherwise, request.failure)):
        for operation in operations:
            _fill_operation(messages.add(), operation)


def _result(then: Sequence[Operation], otherwise: Sequence[Operation], response: Any, revision: int) -> TxnResult:
    """Return the result of a response. `revision`: the outermost one's, which is that of those inside too."""
    answers = list(zip(then if response.succeeded else otherwise, response.responses, strict=True))
    gets = tuple(
        tuple(map(_key_value, answer.response_range.kvs)) for asked, answer in answers if isinstance(asked, Get)
    )
    nested = tuple(
        _result(asked.then, asked.otherwise, answer.response_txn, revision)
        for asked, answer in answers
        if isinstance(asked, Txn)
    )
    return TxnResult(response.succeeded, revision, gets, nested)


def _fill_operation(message: Any, operation: Operation) -> None:
    if isinstance(operation, Get):
        get = message.request_range
        if operation.prefix:
            get.key, get.range_end = prefix_range(operation.key)
        else:
            get.key = operation.key.encode()
    elif isinstance(operation, Put):
        put = message.request_put
        put.key, put.value = operation.key.encode(), operation.value
        if operation.lease:
            put.lease = operation.lease
    elif isinstance(operation, Delete):
        delete = message.request_delete_range
        if operation.prefix:
            delete.key, delete.range_end = prefix_range(operation.key)
        else:
            delete.key = operation.key.encode()
    else:
        message.request_txn.SetInParent()  # it may be empty
        _fill(message.request_txn, operation.compares, operation.then, operation.otherwise)
