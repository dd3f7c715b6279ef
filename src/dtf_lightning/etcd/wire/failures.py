"""`classify` tells what a failed call to etcd means: may it be tried again, was it applied, and whose fault is it.

etcd says much of this only in the text of the status, as its own Go client knows too; the texts are in etcd's
`api/v3rpc/rpctypes/error.go`.
"""

from __future__ import annotations

from enum import Enum

from dtf_lightning.etcd.wire._grpc import grpc


class CallFailure(Enum):
    NOT_CONNECTED = "not connected"
    """There was no connection to send the call on: even a write may be tried again."""
    NOT_PROPOSED = "not proposed"
    """etcd refused the call before anything was done: even a write may be tried again."""
    NO_ANSWER = "no answer"
    """A write may have been applied or not."""
    STALE_TOKEN = "stale token"
    """The token is unknown or older than the last change of users and roles: authenticate again."""
    REFUSED = "refused"
    """etcd does not accept the user, the password, the certificate, or the user's permission."""
    LEASE_GONE = "lease gone"
    COMPACTED = "compacted"
    FULL = "full"
    """The database has reached its quota."""
    NOT_ETCD = "not etcd"
    """A gRPC server answers, or another HTTP server, that has no such service."""
    REJECTED = "rejected"
    """etcd understood the request and will not do it; trying again is pointless."""


TRANSIENT = (CallFailure.NOT_CONNECTED, CallFailure.NOT_PROPOSED, CallFailure.NO_ANSWER)
"""Failures after which another server, or the same one later, may do better."""

_STATUS = grpc.StatusCode
_NOT_CONNECTED_TEXTS = ("failed to connect", "connections to all backends failing")
_NOT_PROPOSED_TEXTS = ("etcdserver: no leader", "etcdserver: not capable", "etcdserver: too many requests")
# UNKNOWN: Go errors that etcd passes on as they are, such as "context deadline exceeded" when it has no quorum.
# INTERNAL: grpc's own for a stream that was reset.
_NO_ANSWER_CODES = (
    _STATUS.UNAVAILABLE,
    _STATUS.DEADLINE_EXCEEDED,
    _STATUS.CANCELLED,
    _STATUS.UNKNOWN,
    _STATUS.INTERNAL,
)
_STALE_TEXTS = ("invalid auth token", "revision of auth store is old")
_REFUSED_TEXTS = ("authentication failed", "user name is empty", "permission denied", "invalid auth management")


def classify(error: grpc.RpcError, *, has_token: bool) -> CallFailure:
    """Return the kind of a failure. `has_token`: whether the call carried a token, or ought to have."""
    code, details = error.code(), error.details() or ""
    if any(text in details for text in _STALE_TEXTS) or code is _STATUS.UNAUTHENTICATED:
        return CallFailure.STALE_TOKEN if has_token else CallFailure.REFUSED
    if "user name is empty" in details and has_token:
        return CallFailure.STALE_TOKEN
    if code is _STATUS.PERMISSION_DENIED or any(text in details for text in _REFUSED_TEXTS):
        return CallFailure.REFUSED
    if "received http2 header with status" in details.lower() or code is _STATUS.UNIMPLEMENTED:
        return CallFailure.NOT_ETCD
    if "requested lease not found" in details:
        return CallFailure.LEASE_GONE
    if "has been compacted" in details:
        return CallFailure.COMPACTED
    if "database space exceeded" in details:
        return CallFailure.FULL
    if code is _STATUS.UNAVAILABLE and any(text in details for text in _NOT_CONNECTED_TEXTS):
        return CallFailure.NOT_CONNECTED
    if any(text in details for text in _NOT_PROPOSED_TEXTS):
        return CallFailure.NOT_PROPOSED
    if code in _NO_ANSWER_CODES:
        return CallFailure.NO_ANSWER
    return CallFailure.REJECTED


def describe(error: grpc.RpcError) -> str:
    """Return one line for messages: the code and etcd's or grpc's words."""
    return f"{error.code().name}: {error.details() or 'no details'}"
