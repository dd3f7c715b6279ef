"""`MemoryMaintenance`: the `Maintenance` protocol of the in-memory twin, a cluster of one member."""

# ruff: noqa: ARG002  (the protocol gives every call a timeout, and nothing here waits)

from __future__ import annotations

from collections.abc import Callable

from dtf_lightning.etcd.maintenance import (
    DEFRAGMENT_TIMEOUT,
    STATUS_TIMEOUT,
    Alarm,
    AlarmKind,
    MemberStatus,
    StoreStatus,
)
from dtf_lightning.etcd.memory.backend import MemoryBackend

MEMBER = 1
"""The id of the only member, which leads."""
_ALARM = Alarm(AlarmKind.NO_SPACE, MEMBER)


class MemoryMaintenance:
    """The maintenance of a `MemoryBackend`. `check` raises where the client cannot reach the backend."""

    def __init__(self, backend: MemoryBackend, check: Callable[[str], None]) -> None:
        self._backend = backend
        self._check = check

    def status(self, *, timeout: float = STATUS_TIMEOUT) -> StoreStatus:
        with self._backend.changed:
            self._check("status")
            member = MemberStatus(
                endpoint="memory",
                member=MEMBER,
                version="memory",
                db_size=self._backend.measure(),
                db_size_in_use=self._backend.in_use(),
                revision=self._backend.revision,
                leader=MEMBER,
                term=1,
                out_of_space=self._backend.out_of_space,
            )
            return StoreStatus((member,))

    def compact(self, revision: int, *, physical: bool = False, timeout: float | None = None) -> None:
        with self._backend.changed:
            self._check(f"compacting below revision {revision}")
            self._backend.compact(revision)

    def defragment(self, *, timeout: float = DEFRAGMENT_TIMEOUT) -> None:
        with self._backend.changed:
            self._check("defragmenting")
            self._backend.defragment()

    def alarms(self, *, timeout: float | None = None) -> tuple[Alarm, ...]:
        with self._backend.changed:
            self._check("listing the alarms")
            return (_ALARM,) if self._backend.out_of_space else ()

    def disarm(self, alarm: Alarm, *, timeout: float | None = None) -> None:
        with self._backend.changed:
            self._check(f"switching off the alarm {alarm.kind.value}")
            if alarm == _ALARM:
                self._backend.out_of_space = False
