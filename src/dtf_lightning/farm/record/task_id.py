"""Ids of tasks: they come from the client, so that submitting twice is submitting once, and they carry their time.

An id is a UUID of version 7 (RFC 9562, section 5.7): 48 bits of milliseconds since the epoch, then chance. By its time an
id that is older than what the record remembers is refused: nobody could tell any more whether it was used before.

The instances of an array have the array's id, with their numbers in its last bits: they are found without a list of them.
"""

from __future__ import annotations

import hashlib
import secrets
import uuid

from dtf_lightning.errors import SettingsError

_RANDOM_BITS = 74


def new_task_id(wall: float, chance: int | None = None) -> str:
    """An id for a task that is submitted at `wall`, seconds since the epoch. `chance`: 74 bits, for tests."""
    bits = secrets.randbits(_RANDOM_BITS) if chance is None else chance
    upper, lower = bits >> 62, bits & ((1 << 62) - 1)
    return str(uuid.UUID(int=round(wall * 1000) << 80 | 7 << 76 | upper << 64 | 2 << 62 | lower))


def paired_task_id(one: str, other: str) -> str:
    """Return the id that two others make together, always the same, with the time of `one`; an array's where `other` is.

    Raises `SettingsError` if `one` is no id.
    """
    digest = hashlib.sha256(f"{one} {other}".encode()).digest()
    made = new_task_id(time_of(one), int.from_bytes(digest) >> (256 - _RANDOM_BITS))
    return array_id(made) if is_array_id(other) else made


def derived_task_id(of: str, number: int) -> str:
    """Return an id that is always the same for the same id and number, of the same time. Raises as `time_of`."""
    wall = time_of(of)
    digest = hashlib.sha256(f"{of}/{number}".encode()).digest()
    return new_task_id(wall, int.from_bytes(digest[:10]) >> (80 - _RANDOM_BITS))


_INDEX_BITS = 24
_INDEX = (1 << _INDEX_BITS) - 1


def array_id(task_id: str) -> str:
    """Return the id for an array that is made of a task's: its last 24 bits are 0. Raises as `time_of`."""
    time_of(task_id)
    return str(uuid.UUID(int=uuid.UUID(task_id).int & ~_INDEX))


def is_array_id(task_id: str) -> bool:
    """Whether the last 24 bits of an id are 0, which are the numbers of an array's instances."""
    return len(task_id) == 36 and task_id.endswith("000000")


def instance_id(array: str, index: int) -> str:
    """Return the id of an array's instance: the array's, with its number + 1 in the last 24 bits."""
    return f"{array[:-6]}{index + 1:06x}"


def array_and_index(task_id: str) -> tuple[str, int] | None:
    """Return the array's id and the number, if this is the id of an instance; `None` for what cannot be one.

    An ordinary task's id may look like it: whether there is such an array says the record.
    """
    try:
        number = int(task_id[-6:], 16)
    except ValueError:
        return None
    return (f"{task_id[:-6]}000000", number - 1) if number and len(task_id) == 36 else None


def time_of(task_id: str) -> float:
    """When it was made, seconds since the epoch, by its client's clock. Raises `SettingsError` for any other text."""
    try:
        parsed = uuid.UUID(task_id)
    except ValueError:
        parsed = None
    if parsed is None or parsed.version != 7 or str(parsed) != task_id:
        raise SettingsError(
            f"the task id {task_id!r} is no UUID of version 7 in small letters; expected one such as "
            f"{new_task_id(1_800_000_000.0, 1)!r}"
        )
    return (parsed.int >> 80) / 1000


def check_task_id(task_id: str, wall: float, retention: float, skew: float) -> None:
    """Whether the record can tell if this id is new. Raises `SettingsError` if not.

    Args:
        task_id: what the client sent.
        wall: now, seconds since the epoch.
        retention: seconds for which the record remembers an id, at least.
        skew: seconds by which a client's clock may be ahead.
    """
    age = wall - time_of(task_id)
    if age > retention:
        raise SettingsError(
            f"the task id {task_id!r} was made {age:.0f} s ago, and the farm remembers ids for {retention:.0f} s: it "
            "cannot tell whether the task was submitted before. Submit it under a new id"
        )
    if age < -skew:
        raise SettingsError(
            f"the task id {task_id!r} was made {-age:.0f} s in the future, of which {skew:.0f} s are allowed: set the "
            "clock of the machine that submits"
        )
