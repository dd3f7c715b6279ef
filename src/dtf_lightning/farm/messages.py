"""What a farm worker and a coordinator say to each other over the worker's WebSocket: one JSON object a message.

Messages that wait together travel together, as a JSON array of these objects: in a flood of small tasks sending and
receiving one by one was more work than all else that a message needs. The first message of either side is by itself.

| from the worker | |
|---|---|
| `Hello` | the first: who it is, what it offers, what it runs, which results were not acknowledged yet |
| `Started` | an attempt's process runs |
| `Result` | an attempt has ended; repeated in every `Hello` until it is acknowledged |
| `Heartbeat` | it is there; answered by one |
| `MeetingPlace` | where the members of a gang's attempt can meet: picked by the worker of its first member |
| `Gone` | of an attempt that it was told to end nothing is left: the answer to `CancelAttempt`, at once or later |
| `Draining` | it wants nothing more, and goes when what it runs has ended |

| from the coordinator | |
|---|---|
| `Welcome` | the answer to `Hello`, once the record shows the worker as registered here |
| `Run` | an attempt at a task; sent again after a reconnection: idempotent by task and revision |
| `PickMeeting` | pick where the members of a gang's attempt meet; its `Run` follows |
| `Acknowledge` | a result is in the record, or does not count any more: the worker may forget it |
| `CancelAttempt` | end an attempt, whose result nobody wants; sent again after a reconnection until `Gone` is answered |
| `YieldAttempt` | a training's part is to leave at a step boundary: it ends as `yielded` |
| `Drain` | finish what runs, take nothing more, and end |
| `Refuse` | the worker cannot be taken, and why; the end |

Rules: `type` says which message it is, `v` which version of the protocol. A field that is not known is passed over; a
message of an unknown type is an error of the other side.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dtf_lightning.errors import ProtocolError
from dtf_lightning.farm.json_values import from_json, read_json, to_json, write_json
from dtf_lightning.farm.record.values import TaskSpecification
from dtf_lightning.farm.rules.attempts import AttemptOutcome
from dtf_lightning.farm.rules.health import WorkerHealth

VERSION = 1
HEARTBEAT = 1.0
"""Seconds between two of a worker's heartbeats."""
TOGETHER = 64
"""Messages that travel together, at most, and not many more characters than `TOGETHER_SIZE`."""
TOGETHER_SIZE = 1_000_000
SILENCE = 4.0
"""Seconds without a word after which either side takes the connection for dead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """How an attempt has ended."""

    task: str
    number: int
    revision: int
    """The attempt's identity."""
    outcome: AttemptOutcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Hello:
    """A worker introduces itself."""

    worker: str
    session: str
    """Chosen anew by every start of the worker's process."""
    identity: str = ""
    """Of the worker's folder, over all its starts: two folders are two workers."""
    version: str = ""
    """Of the package."""
    devices: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    host: str = ""
    running: Mapping[str, int] = field(default_factory=dict)
    """Task -> the attempt's revision."""
    kept: tuple[Result, ...] = ()
    draining: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """An attempt's process runs."""

    task: str
    revision: int
    at: float
    """Seconds since the epoch by the worker's clock."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MeetingPlace:
    """Where a gang's first member can be reached by the others."""

    task: str
    revision: int
    host: str
    port: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """Somebody is there."""

    health: WorkerHealth | None = None
    """A worker's, now and then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gone:
    """Nothing runs any more of an attempt that the worker was told to end."""

    task: str
    revision: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Draining:
    """The worker wants nothing more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Welcome:
    """The worker is registered."""

    coordinator: str
    addresses: tuple[str, ...] = ()
    """Of all coordinators, for when this one goes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """An attempt that this worker is to make."""

    task: str
    number: int
    revision: int
    alternative: int = 0
    """Which of the specification's needs was granted."""
    specification: TaskSpecification
    rank: int = 0
    world: int = 1
    """Members of the gang that makes the attempt."""
    host: str = ""
    """Of a gang: where its members meet."""
    port: int = 0
    called_off: str = ""
    """Of a gang: why this member must end, or not begin. It has an outcome all the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PickMeeting:
    """This worker has the first member of a gang's attempt."""

    task: str
    revision: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Acknowledge:
    """A result may be forgotten."""

    task: str
    revision: int
    recorded: bool
    """`False`: it is of an attempt that no longer counts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CancelAttempt:
    """An attempt whose result nobody wants."""

    task: str
    revision: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class YieldAttempt:
    """A training's part whose device another task needs. Sent again after a reconnection: idempotent."""

    task: str
    revision: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Drain:
    """The worker is to end when what it runs has ended."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Refuse:
    """This worker cannot be taken."""

    reason: str


T = TypeVar("T")

FromWorker = Hello | Started | Result | MeetingPlace | Heartbeat | Gone | Draining
FromCoordinator = Welcome | Run | PickMeeting | Acknowledge | CancelAttempt | YieldAttempt | Drain | Refuse | Heartbeat
M = TypeVar("M", FromWorker, FromCoordinator)

_NAMES: dict[str, type[Any]] = {
    "hello": Hello,
    "started": Started,
    "result": Result,
    "meeting_place": MeetingPlace,
    "heartbeat": Heartbeat,
    "gone": Gone,
    "draining": Draining,
    "welcome": Welcome,
    "run": Run,
    "pick_meeting": PickMeeting,
    "acknowledge": Acknowledge,
    "cancel": CancelAttempt,
    "yield": YieldAttempt,
    "drain": Drain,
    "refuse": Refuse,
}
_TYPES = {cls: name for name, cls in _NAMES.items()}


def write_message(message: FromWorker | FromCoordinator) -> str:
    """Return the message as text for the socket."""
    body = {"type": _TYPES[type(message)], "v": VERSION, **to_json(message)}
    return write_json(body, utf8=True).decode()


async def next_text(queue: asyncio.Queue[M], along: Callable[[], Sequence[M]] = tuple) -> str:
    """Wait for a message in a queue, and return it, with those behind it, as text for the socket.

    `along`: returns what was only waiting for a message to travel with.
    """
    texts = [write_message(await queue.get()), *map(write_message, along())]
    size = sum(map(len, texts))
    while len(texts) < TOGETHER and size < TOGETHER_SIZE and not queue.empty():
        texts.append(write_message(queue.get_nowait()))
        size += len(texts[-1])
    return texts[0] if len(texts) == 1 else f"[{','.join(texts)}]"


def read_message(text: str | bytes) -> FromWorker | FromCoordinator:
    """Return the message that a text stands for. Raises `ProtocolError` for anything else, and for a newer version."""
    return _read(text, _made)


def read_messages(text: str | bytes) -> Sequence[FromWorker | FromCoordinator]:
    """Return the messages that a text stands for. Raises as `read_message`."""
    return _read(
        text, lambda told: [_made(body) for body in told] if told and isinstance(told, list) else [_made(told)]
    )


def _read(text: str | bytes, made: Callable[[Any], T]) -> T:
    try:
        return read_json(text, made)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ProtocolError(f"no message of the farm: {error!r} in {text[:200]!r}") from error


def _made(body: Any) -> FromWorker | FromCoordinator:
    name, version = body["type"], body["v"]
    if version != VERSION:
        raise ProtocolError(
            f"a message {name!r} of version {version} came; this release speaks version {VERSION}: run the same "
            "release of dtf-lightning on coordinators and workers"
        )
    message: FromWorker | FromCoordinator = from_json(_NAMES[name], body)
    return message
