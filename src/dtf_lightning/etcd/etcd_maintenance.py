"""`EtcdMaintenance`: the `Maintenance` protocol on a real etcd.

Rules:
- Compactions and alarms are the cluster's: any member may be asked. Sizes and defragmenting are a member's own.
- A member that defragments answers nothing: one at a time, the leader last, so that it need not be replaced for each.
"""

from __future__ import annotations

from dtf_lightning.errors import RevisionCompacted, StoreError, StoreUnavailable
from dtf_lightning.etcd.client import Client
from dtf_lightning.etcd.maintenance import (
    DEFRAGMENT_TIMEOUT,
    STATUS_TIMEOUT,
    Alarm,
    AlarmKind,
    MemberStatus,
    StoreStatus,
)
from dtf_lightning.etcd.wire import messages as pb
from dtf_lightning.etcd.wire import rpc
from dtf_lightning.etcd.wire._grpc import grpc
from dtf_lightning.etcd.wire.failures import describe


class EtcdMaintenance:
    """The maintenance of a real etcd. Raises what `Maintenance` and `Client.call` say."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def status(self, *, timeout: float = STATUS_TIMEOUT) -> StoreStatus:
        answers = [self._ask(server, timeout) for server in range(len(self._client.endpoints.addresses))]
        members = tuple(answer for answer in answers if isinstance(answer, MemberStatus))
        unreachable = tuple(answer for answer in answers if not isinstance(answer, MemberStatus))
        if not members:
            reasons = "; ".join(f"{endpoint}: {reason}" for endpoint, reason in unreachable)
            raise StoreUnavailable(f"status: no member of etcd answered within {timeout:g} s ({reasons})")
        return StoreStatus(members, unreachable)

    def compact(self, revision: int, *, physical: bool = False, timeout: float | None = None) -> None:
        # Waiting for the space takes longer than a healthy cluster's answer: then one server gets all the time.
        server = self._client.current if physical else None
        request = pb.CompactionRequest(revision=revision, physical=physical)
        try:
            self._client.call(
                rpc.COMPACT, request, what=f"compacting below revision {revision}", timeout=timeout, server=server
            )
        except RevisionCompacted:
            pass  # an attempt whose answer was lost, or somebody else

    def defragment(self, *, timeout: float = DEFRAGMENT_TIMEOUT) -> None:
        servers = range(len(self._client.endpoints.addresses))
        answers = {server: self._ask(server, STATUS_TIMEOUT) for server in servers}
        failed = []
        for server in sorted(servers, key=lambda server: _leads(answers[server])):
            answer = answers[server]
            try:
                if not isinstance(answer, MemberStatus):
                    raise StoreUnavailable(": ".join(answer))
                self._client.call(
                    rpc.DEFRAGMENT,
                    pb.DefragmentRequest(),
                    what=f"defragmenting {self._client.name_of(server)}",
                    timeout=timeout,
                    server=server,
                )
            except StoreUnavailable as error:
                failed.append(str(error))
        if failed:
            raise StoreUnavailable(
                f"defragmenting: {len(failed)} of {len(servers)} members were not done, do it again when they are "
                f"there: {'; '.join(failed)}"
            )

    def alarms(self, *, timeout: float | None = None) -> tuple[Alarm, ...]:
        request = pb.AlarmRequest(action=pb.AlarmAction.GET)
        response = self._client.call(rpc.ALARM, request, what="listing the alarms", timeout=timeout)
        return tuple(Alarm(_KINDS[alarm.alarm], alarm.memberID) for alarm in response.alarms)

    def disarm(self, alarm: Alarm, *, timeout: float | None = None) -> None:
        request = pb.AlarmRequest(action=pb.AlarmAction.DEACTIVATE, memberID=alarm.member, alarm=_TYPES[alarm.kind])
        what = f"switching off the alarm {alarm.kind.value} of member {alarm.member:x}"
        self._client.call(rpc.ALARM, request, what=what, timeout=timeout)

    def _ask(self, server: int, timeout: float) -> MemberStatus | tuple[str, str]:
        """Return a member's status, or which endpoint was asked and why there is none."""
        endpoint = self._client.name_of(server)
        try:
            answer = self._client.attempt(rpc.STATUS, pb.StatusRequest(), server=server, timeout=timeout)
        except grpc.RpcError as error:
            return endpoint, describe(error)
        except ValueError:  # grpc's answer to a channel that another thread closed
            raise StoreError("status: the connection to etcd was closed by this process") from None
        return MemberStatus(
            endpoint=endpoint,
            member=answer.header.member_id,
            version=answer.version,
            db_size=answer.dbSize,
            db_size_in_use=answer.dbSizeInUse,
            revision=answer.header.revision,
            leader=answer.leader,
            term=answer.raftTerm,
            out_of_space=any(AlarmKind.NO_SPACE.value in error for error in answer.errors),
        )


_KINDS = {pb.AlarmType.NOSPACE: AlarmKind.NO_SPACE, pb.AlarmType.CORRUPT: AlarmKind.CORRUPT}
_TYPES = {kind: number for number, kind in _KINDS.items()}


def _leads(answer: MemberStatus | tuple[str, str]) -> bool:
    return isinstance(answer, MemberStatus) and answer.leads
