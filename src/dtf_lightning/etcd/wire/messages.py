"""etcd's wire messages: the part of its published `rpc.proto` and `kv.proto` that this client speaks.

Rules:
- Field numbers and wire types are etcd's own and never change; a field that we do not use is left out.
- The descriptors live in a private pool under a package of our own. Another etcd client in the same process cannot
  clash with them, and no generated code ties us to one protobuf release.
- Enums are declared int32 (the same on the wire) and have their values in the IntEnums below.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# One line per message: `Name: number type field, ...`. `*` after a type: repeated. `/oneof`: member of that oneof.
_SCHEMA = """
KeyValue: 1 bytes key, 2 int64 create_revision, 3 int64 mod_revision, 4 int64 version, 5 bytes value, 6 int64 lease
Event: 1 int32 type, 2 KeyValue kv
ResponseHeader: 1 uint64 cluster_id, 2 uint64 member_id, 3 int64 revision, 4 uint64 raft_term

RangeRequest: 1 bytes key, 2 bytes range_end, 3 int64 limit, 4 int64 revision, 7 bool serializable, 8 bool keys_only,
  9 bool count_only
RangeResponse: 1 ResponseHeader header, 2 KeyValue* kvs, 3 bool more, 4 int64 count
PutRequest: 1 bytes key, 2 bytes value, 3 int64 lease
PutResponse: 1 ResponseHeader header
DeleteRangeRequest: 1 bytes key, 2 bytes range_end
DeleteRangeResponse: 1 ResponseHeader header, 2 int64 deleted

Compare: 1 int32 result, 2 int32 target, 3 bytes key, 4 int64 version /target_union,
  5 int64 create_revision /target_union, 6 int64 mod_revision /target_union, 7 bytes value /target_union,
  8 int64 lease /target_union
RequestOp: 1 RangeRequest request_range /request, 2 PutRequest request_put /request,
  3 DeleteRangeRequest request_delete_range /request, 4 TxnRequest request_txn /request
ResponseOp: 1 RangeResponse response_range /response, 2 PutResponse response_put /response,
  3 DeleteRangeResponse response_delete_range /response, 4 TxnResponse response_txn /response
TxnRequest: 1 Compare* compare, 2 RequestOp* success, 3 RequestOp* failure
TxnResponse: 1 ResponseHeader header, 2 bool succeeded, 3 ResponseOp* responses
CompactionRequest: 1 int64 revision, 2 bool physical
CompactionResponse: 1 ResponseHeader header

WatchCreateRequest: 1 bytes key, 2 bytes range_end, 3 int64 start_revision
WatchRequest: 1 WatchCreateRequest create_request /request_union
WatchResponse: 1 ResponseHeader header, 2 int64 watch_id, 3 bool created, 4 bool canceled, 5 int64 compact_revision,
  6 string cancel_reason, 11 Event* events

LeaseGrantRequest: 1 int64 TTL, 2 int64 ID
LeaseGrantResponse: 1 ResponseHeader header, 2 int64 ID, 3 int64 TTL
LeaseRevokeRequest: 1 int64 ID
LeaseRevokeResponse: 1 ResponseHeader header
LeaseKeepAliveRequest: 1 int64 ID
LeaseKeepAliveResponse: 1 ResponseHeader header, 2 int64 ID, 3 int64 TTL

StatusRequest:
StatusResponse: 1 ResponseHeader header, 2 string version, 3 int64 dbSize, 4 uint64 leader, 6 uint64 raftTerm,
  8 string* errors, 9 int64 dbSizeInUse
AlarmRequest: 1 int32 action, 2 uint64 memberID, 3 int32 alarm
AlarmMember: 1 uint64 memberID, 2 int32 alarm
AlarmResponse: 1 ResponseHeader header, 2 AlarmMember* alarms
DefragmentRequest:
DefragmentResponse: 1 ResponseHeader header
AuthenticateRequest: 1 string name, 2 string password
AuthenticateResponse: 1 ResponseHeader header, 2 string token
"""

_PACKAGE = "dtf_lightning.etcd"
_FieldType = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bytes": _FieldType.TYPE_BYTES,
    "string": _FieldType.TYPE_STRING,
    "bool": _FieldType.TYPE_BOOL,
    "int32": _FieldType.TYPE_INT32,
    "int64": _FieldType.TYPE_INT64,
    "uint64": _FieldType.TYPE_UINT64,
}


def _add_field(message: descriptor_pb2.DescriptorProto, declaration: str) -> None:
    number, type_, name, *oneof = declaration.split()
    field = message.field.add(name=name, number=int(number))
    field.label = _FieldType.LABEL_REPEATED if type_.endswith("*") else _FieldType.LABEL_OPTIONAL
    type_ = type_.rstrip("*")
    if type_ in _SCALARS:
        field.type = _SCALARS[type_]
    else:
        field.type, field.type_name = _FieldType.TYPE_MESSAGE, f".{_PACKAGE}.{type_}"
    if oneof:
        names = [declared.name for declared in message.oneof_decl]
        if oneof[0][1:] not in names:
            message.oneof_decl.add(name=oneof[0][1:])
            names.append(oneof[0][1:])
        field.oneof_index = names.index(oneof[0][1:])


def _build_pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(name="dtf_lightning/etcd.proto", package=_PACKAGE, syntax="proto3")
    for line in _SCHEMA.replace("\n  ", " ").splitlines():
        if not line:
            continue
        name, _, fields = line.partition(":")
        message = file.message_type.add(name=name)
        for declaration in filter(str.strip, fields.split(",")):
            _add_field(message, declaration)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _build_pool()


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


class CompareResult(IntEnum):
    EQUAL = 0
    GREATER = 1
    LESS = 2
    NOT_EQUAL = 3


class CompareTarget(IntEnum):
    VERSION = 0
    CREATE = 1
    MOD = 2
    VALUE = 3
    LEASE = 4


class EventType(IntEnum):
    PUT = 0
    DELETE = 1


class AlarmAction(IntEnum):
    GET = 0
    DEACTIVATE = 2


class AlarmType(IntEnum):
    NONE = 0
    NOSPACE = 1
    CORRUPT = 2


RangeRequest, RangeResponse = _message("RangeRequest"), _message("RangeResponse")
PutRequest, PutResponse = _message("PutRequest"), _message("PutResponse")
DeleteRangeRequest, DeleteRangeResponse = _message("DeleteRangeRequest"), _message("DeleteRangeResponse")
Compare, RequestOp = _message("Compare"), _message("RequestOp")
TxnRequest, TxnResponse = _message("TxnRequest"), _message("TxnResponse")
CompactionRequest, CompactionResponse = _message("CompactionRequest"), _message("CompactionResponse")
WatchCreateRequest = _message("WatchCreateRequest")
WatchRequest, WatchResponse = _message("WatchRequest"), _message("WatchResponse")
LeaseGrantRequest, LeaseGrantResponse = _message("LeaseGrantRequest"), _message("LeaseGrantResponse")
LeaseRevokeRequest, LeaseRevokeResponse = _message("LeaseRevokeRequest"), _message("LeaseRevokeResponse")
LeaseKeepAliveRequest, LeaseKeepAliveResponse = _message("LeaseKeepAliveRequest"), _message("LeaseKeepAliveResponse")
StatusRequest, StatusResponse = _message("StatusRequest"), _message("StatusResponse")
AlarmRequest, AlarmResponse = _message("AlarmRequest"), _message("AlarmResponse")
DefragmentRequest, DefragmentResponse = _message("DefragmentRequest"), _message("DefragmentResponse")
AuthenticateRequest, AuthenticateResponse = _message("AuthenticateRequest"), _message("AuthenticateResponse")
