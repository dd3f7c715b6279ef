"""`Maintenance` is an operator's work on etcd's database: its size, its history, space given back, alarms switched off.

etcd keeps every revision until it is told to forget the old ones (compact), and keeps the file's size until it is told
to write it anew (defragment). At its quota (2 GB by default) it raises an alarm and takes only reads and deletes, also
when there is room again, until the alarm is switched off.

The quota has two gaps. What a transaction puts through transactions inside it counts nothing (`costTxnReq` in etcd's
`quota.go`, all releases so far): such a batch passes the alarm, and where it is all that is written the file grows past
the quota without one. And etcd before 3.5.7 (etcd #14884) refuses any transaction, one that only reads or deletes too,
while its file is at the quota; `Store.delete` always works. So whoever writes in batches has to look at the size.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Protocol

STATUS_TIMEOUT = 1.0
"""Seconds that one member has to tell its status, which it has at hand."""
DEFRAGMENT_TIMEOUT = 60.0
"""Seconds that one member has to write its database anew; a gigabyte takes some ten."""


class AlarmKind(Enum):
    """The complaint of a member of etcd."""

    NO_SPACE = "NOSPACE"
    """The database has reached the quota: the cluster takes no writes and grants no leases."""
    CORRUPT = "CORRUPT"
    """The member's data differ from the others': replace it, do not silence it."""


@dataclass(frozen=True, slots=True)
class Alarm:
    """An alarm, which stays until it is switched off. `member` is etcd's id of the member that raised it."""

    kind: AlarmKind
    member: int


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """The status of one member by its own account, which it gives without a quorum."""

    endpoint: str
    member: int
    """etcd's id of the member."""
    version: str
    db_size: int
    """The bytes of its database's file, which are what the quota counts."""
    db_size_in_use: int
    """The bytes of the file that hold something; defragmenting gives back the rest."""
    revision: int
    leader: int
    """The id of the member that leads, as far as this one knows; 0 for none."""
    term: int
    """The number of etcd's own elections so far."""
    out_of_space: bool
    """Whether the alarm for the quota is on, as far as this one knows."""

    @property
    def leads(self) -> bool:
        """Whether this member is etcd's leader."""
        return self.member == self.leader


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """The status of the members behind a store's endpoints: of those that answered, and why the others did not."""

    members: tuple[MemberStatus, ...]
    unreachable: tuple[tuple[str, str], ...] = ()
    """(endpoint, reason) of the endpoints that did not answer."""


class Maintenance(Protocol):
    """The care of etcd's database. Raises what `Store` raises.

    Where etcd has users, defragmenting takes the role `root`, and from 3.4.42, 3.5.28 and 3.6.9 on (CVE-2026-33413) perhaps
    compacting and alarms too: then `AuthenticationFailed`.
    """

    def status(self, *, timeout: float = STATUS_TIMEOUT) -> StoreStatus:
        """Ask every endpoint, for `timeout` seconds each. Raises `StoreUnavailable` if none answers."""
        ...

    def compact(self, revision: int, *, physical: bool = False, timeout: float | None = None) -> None:
        """Forget the history before `revision`: watches and ranges can no longer go there. No error if that was done
        before.

        Keys as they are stay. Compact below the latest revision, so that somebody who has just read can still watch
        from there. `physical`: only return when the member that was asked has freed the space, as is needed before
        `defragment`. Raises `StoreError` for a revision to come.
        """
        ...

    def defragment(self, *, timeout: float = DEFRAGMENT_TIMEOUT) -> None:
        """Make every member's file as small as its content, one after the other, the leader last.

        A member answers nothing meanwhile; `timeout` is for each, in seconds. Raises `StoreUnavailable` at the end,
        naming those that could not be asked or did not finish.
        """
        ...

    def alarms(self, *, timeout: float | None = None) -> tuple[Alarm, ...]:
        """Return the alarms that are on, as the cluster has agreed."""
        ...

    def disarm(self, alarm: Alarm, *, timeout: float | None = None) -> None:
        """Switch an alarm off, which may be off. etcd raises it anew at the next write if its cause is still there."""
        ...
