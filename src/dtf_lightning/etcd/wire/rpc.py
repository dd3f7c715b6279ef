"""etcd's remote procedures, as far as this client calls them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dtf_lightning.etcd.wire import messages as pb


@dataclass(frozen=True, slots=True)
class Rpc:
    path: str
    request: Any
    response: Any

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


RANGE = Rpc("/etcdserverpb.KV/Range", pb.RangeRequest, pb.RangeResponse)
PUT = Rpc("/etcdserverpb.KV/Put", pb.PutRequest, pb.PutResponse)
DELETE_RANGE = Rpc("/etcdserverpb.KV/DeleteRange", pb.DeleteRangeRequest, pb.DeleteRangeResponse)
TXN = Rpc("/etcdserverpb.KV/Txn", pb.TxnRequest, pb.TxnResponse)
COMPACT = Rpc("/etcdserverpb.KV/Compact", pb.CompactionRequest, pb.CompactionResponse)
LEASE_GRANT = Rpc("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse)
LEASE_REVOKE = Rpc("/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse)
STATUS = Rpc("/etcdserverpb.Maintenance/Status", pb.StatusRequest, pb.StatusResponse)
ALARM = Rpc("/etcdserverpb.Maintenance/Alarm", pb.AlarmRequest, pb.AlarmResponse)
DEFRAGMENT = Rpc("/etcdserverpb.Maintenance/Defragment", pb.DefragmentRequest, pb.DefragmentResponse)
AUTHENTICATE = Rpc("/etcdserverpb.Auth/Authenticate", pb.AuthenticateRequest, pb.AuthenticateResponse)

# Streams in both directions.
WATCH = Rpc("/etcdserverpb.Watch/Watch", pb.WatchRequest, pb.WatchResponse)
LEASE_KEEP_ALIVE = Rpc("/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse)
