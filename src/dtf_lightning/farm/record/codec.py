"""The values of a farm's records as bytes: JSON objects with a version, for coordinators of several releases at once.

Rules:
- `v` is the version of this kind of value. It grows when an older release would act wrongly on what a newer one has
  written; such a value is refused by the older release, by name. A field that may be overlooked is added without that.
- A reader takes every version up to its own: `UPGRADES` brings an older object to the next version, step by step.
- A field that has its default is left out; one that this release does not know is passed over.
- The text is the same for equal values, so that bytes can be compared. It is Python's JSON: NaN is a number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from dtf_lightning.errors import ProtocolError
from dtf_lightning.farm.json_values import from_json, read_json, to_json, write_json
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.orchestrations.values import OrchestrationRecord
from dtf_lightning.farm.record.quarantine.values import QuarantineRecord
from dtf_lightning.farm.record.reservations.values import ReservationRecord
from dtf_lightning.farm.record.scaling.values import PoolRecord
from dtf_lightning.farm.record.schedules.values import ScheduleRecord
from dtf_lightning.farm.record.secrets.values import SecretRecord
from dtf_lightning.farm.record.tokens.values import FamilyRecord, RevokedRecord, SigningKeyRecord, TokenRecord
from dtf_lightning.farm.record.values import (
    Attempt,
    Borrowings,
    CoordinatorRecord,
    DisabledRecord,
    Ending,
    Envelope,
    FailedAttempt,
    KeyRecord,
    LeaderRecord,
    LicenceRecord,
    Meeting,
    MemberRecord,
    NodeRecord,
    ProjectRecord,
    TaskSpecification,
    TermRecord,
    Tombstone,
    Value,
    WorkerRecord,
    YieldRequest,
)
from dtf_lightning.farm.rules.health import WorkerHealth
from dtf_lightning.farm.rules.watching.incidents import Incident, Silence

MAX_ENVELOPE = 8192
"""Bytes of an envelope, without what was asked for: at 500 tasks a second, ten minutes of them are 2 GB at most."""

CLASSES: dict[Kind, type[Value]] = {
    Kind.LEADER: LeaderRecord,
    Kind.TERM: TermRecord,
    Kind.NODE: NodeRecord,
    Kind.DISABLED: DisabledRecord,
    Kind.COORDINATOR: CoordinatorRecord,
    Kind.WORKER: WorkerRecord,
    Kind.HEALTH: WorkerHealth,
    Kind.TASK: TaskSpecification,
    Kind.ATTEMPT: Attempt,
    Kind.DONE: Envelope,
    Kind.FAILED: FailedAttempt,
    Kind.ENDING: Ending,
    Kind.MEETING: Meeting,
    Kind.MEMBER: MemberRecord,
    Kind.YIELD: YieldRequest,
    Kind.BORROWINGS: Borrowings,
    Kind.PROJECT: ProjectRecord,
    Kind.LICENCE: LicenceRecord,
    Kind.SCHEDULE: ScheduleRecord,
    Kind.QUARANTINE: QuarantineRecord,
    Kind.SECRET: SecretRecord,
    Kind.RESERVATION: ReservationRecord,
    Kind.SCALING: PoolRecord,
    Kind.ORCHESTRATION: OrchestrationRecord,
    Kind.KEY: KeyRecord,
    Kind.TOMBSTONE: Tombstone,
    Kind.SIGNING_KEY: SigningKeyRecord,
    Kind.TOKEN: TokenRecord,
    Kind.REVOKED: RevokedRecord,
    Kind.FAMILY: FamilyRecord,
    Kind.ALERT: Incident,
    Kind.SILENCE: Silence,
}
"""What a key of each kind holds, as far as there is something yet."""

VERSIONS: dict[type[Value], int] = dict.fromkeys(CLASSES.values(), 1)
"""The version in which this release writes each."""

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
UPGRADES: dict[tuple[type[Value], int], Upgrade] = {}
"""(class, version) -> what makes an object of that version one of the next."""


def size_of(envelope: Envelope) -> int:
    """Bytes that count against `MAX_ENVELOPE`."""
    return len(_bytes(replace(envelope, asked="") if envelope.asked else envelope))


def _bytes(value: Value) -> bytes:
    body = to_json(value)
    body["v"] = VERSIONS[type(value)]
    return write_json(body)


def encode(value: Value) -> bytes:
    """The bytes for etcd. Raises `ProtocolError` for an envelope that is too large."""
    data = _bytes(value)
    if isinstance(value, Envelope) and len(data) > MAX_ENVELOPE:
        if value.asked:
            encode(replace(value, asked=""))
        else:
            raise ProtocolError(
                f"the envelope of a result has {len(data)} bytes, {MAX_ENVELOPE} are allowed: test cases, logs and series "
                "belong into artifacts"
            )
    return data


def decode(kind: Kind, data: bytes) -> Value:
    """The value that a key of this kind holds.

    Raises `ProtocolError` for what is no such value, and for one of a newer release that this one must not act on.
    """
    cls = CLASSES.get(kind)
    if cls is None:
        raise ProtocolError(f"a value under {kind.value}/ is unknown to this release")

    def made(body: Any) -> Value:
        version = body.pop("v")
        if type(version) is int and version > VERSIONS[cls]:
            raise ProtocolError(
                f"a {cls.__name__} of version {version} was written by a newer release; this one reads up to version "
                f"{VERSIONS[cls]}: update it"
            )
        for step in range(version, VERSIONS[cls]):
            body = UPGRADES[cls, step](body)
        return from_json(cls, body)

    try:
        return read_json(data, made)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ProtocolError(f"no {cls.__name__}: {error!r} in {data[:200]!r}") from error
