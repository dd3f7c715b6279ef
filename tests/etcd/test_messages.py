"""The wire format, byte by byte where a mistake would not show, and the texts by which etcd tells failures apart."""

from __future__ import annotations

import grpc
import pytest

from dtf_lightning.etcd.etcd_store import prefix_range
from dtf_lightning.etcd.wire import messages as pb
from dtf_lightning.etcd.wire.failures import CallFailure, classify

CODE = grpc.StatusCode


@pytest.mark.parametrize(
    ("message", "encoded"),
    [
        (pb.RangeRequest(key=b"k", range_end=b"l", limit=5, revision=7), b"\x0a\x01k\x12\x01l\x18\x05\x20\x07"),
        (pb.PutRequest(key=b"k", value=b"v", lease=9), b"\x0a\x01k\x12\x01v\x18\x09"),
        (
            pb.Compare(result=pb.CompareResult.NOT_EQUAL, target=pb.CompareTarget.LEASE, key=b"k", lease=0),
            b"\x08\x03\x10\x04\x1a\x01k\x40\x00",
        ),
        (
            pb.WatchRequest(create_request=pb.WatchCreateRequest(key=b"k", start_revision=3)),
            b"\x0a\x05\x0a\x01k\x18\x03",
        ),
        (pb.LeaseGrantRequest(TTL=5), b"\x08\x05"),
        (pb.RangeRequest(key=b"k", count_only=True), b"\x0a\x01k\x48\x01"),
        (
            pb.TxnRequest(success=[pb.RequestOp(request_txn=pb.TxnRequest(failure=[pb.RequestOp()]))]),
            b"\x12\x04\x22\x02\x1a\x00",
        ),
        (pb.CompactionRequest(revision=5, physical=True), b"\x08\x05\x10\x01"),
        (
            pb.AlarmRequest(action=pb.AlarmAction.DEACTIVATE, memberID=3, alarm=pb.AlarmType.NOSPACE),
            b"\x08\x02\x10\x03\x18\x01",
        ),
    ],
)
def test_encoding(message, encoded: bytes):
    assert message.SerializeToString() == encoded


def test_fields_that_we_do_not_know_are_passed_over():
    """A newer etcd may send more: field 99 of a response."""
    known = pb.PutResponse(header={"revision": 4}).SerializeToString()
    assert pb.PutResponse.FromString(known + b"\x9a\x06\x01x").header.revision == 4


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [("a", (b"a", b"b")), ("/run/", (b"/run/", b"/run0")), ("é", (b"\xc3\xa9", b"\xc3\xaa")), ("", (b"\0", b"\0"))],
)
def test_prefix_range(prefix: str, expected: tuple[bytes, bytes]):
    assert prefix_range(prefix) == expected


class Status(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


@pytest.mark.parametrize(
    ("code", "details", "failure"),
    [
        (CODE.UNAVAILABLE, "failed to connect to all addresses; last error: refused", CallFailure.NOT_CONNECTED),
        (CODE.UNAVAILABLE, "etcdserver: no leader", CallFailure.NOT_PROPOSED),
        (CODE.RESOURCE_EXHAUSTED, "etcdserver: too many requests", CallFailure.NOT_PROPOSED),
        (CODE.UNAVAILABLE, "Socket closed", CallFailure.NO_ANSWER),
        (CODE.UNAVAILABLE, "etcdserver: request timed out", CallFailure.NO_ANSWER),
        (CODE.UNAVAILABLE, "etcdserver: leader changed", CallFailure.NO_ANSWER),
        (CODE.DEADLINE_EXCEEDED, "Deadline Exceeded", CallFailure.NO_ANSWER),
        (CODE.UNKNOWN, "context deadline exceeded", CallFailure.NO_ANSWER),
        (CODE.UNAUTHENTICATED, "etcdserver: invalid auth token", CallFailure.STALE_TOKEN),
        (CODE.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", CallFailure.STALE_TOKEN),
        (CODE.INVALID_ARGUMENT, "etcdserver: user name is empty", CallFailure.STALE_TOKEN),
        (CODE.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password", CallFailure.REFUSED),
        (CODE.PERMISSION_DENIED, "etcdserver: permission denied", CallFailure.REFUSED),
        (CODE.NOT_FOUND, "etcdserver: requested lease not found", CallFailure.LEASE_GONE),
        (CODE.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted", CallFailure.COMPACTED),
        (CODE.UNIMPLEMENTED, "unknown service etcdserverpb.KV", CallFailure.NOT_ETCD),
        (CODE.UNKNOWN, "Received http2 header with status: 404", CallFailure.NOT_ETCD),
        (CODE.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded", CallFailure.FULL),
        (CODE.INVALID_ARGUMENT, "etcdserver: key is not provided", CallFailure.REJECTED),
    ],
)
def test_failures(code: grpc.StatusCode, details: str, failure: CallFailure):
    assert classify(Status(code, details), has_token=True) is failure


def test_without_a_user_nothing_can_be_stale():
    for code, details in (
        (CODE.UNAUTHENTICATED, "etcdserver: invalid auth token"),
        (CODE.INVALID_ARGUMENT, "etcdserver: user name is empty"),
    ):
        assert classify(Status(code, details), has_token=False) is CallFailure.REFUSED
