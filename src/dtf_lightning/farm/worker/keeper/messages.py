"""What a worker and its keeper say to each other: a JSON object a line. Both are of one release, on one machine.

Output and standard input do not travel: they lie in files of the attempt's folder, and a message tells their length.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from dtf_lightning.errors import ProtocolError

SOCKET = "keeper.socket"
"""Name of the keeper's socket in the worker's folder."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """To the keeper: start an attempt. Nothing happens if there is one of this name."""

    name: str
    """Of the attempt's folder."""
    command: list[str]
    environment: dict[str, str]
    """All of it."""
    folder: str
    mark: str
    """`NAME=value`, which is in the environment of its processes and of no others."""
    timeout: float | None
    grace: float
    memory: int | None
    """Bytes."""
    cpus: list[int]
    """Which it may use; none: all."""
    secrets: list[str]
    stdin: bool
    log_limit: int
    """Bytes."""
    sample: float
    """Seconds between two samples of what it takes, at first."""


@dataclass(frozen=True, kw_only=True)
class Feed:
    """To the keeper: the attempt's standard input is this long now."""

    name: str
    size: int
    complete: bool


@dataclass(frozen=True, kw_only=True)
class Stop:
    """To the keeper: end an attempt."""

    name: str
    kind: str
    """`cancelled`, `lost` or `yielded`."""
    reason: str
    grace: float | None = None
    """Seconds; `None`: those of its order."""


@dataclass(frozen=True, kw_only=True)
class Quit:
    """To the keeper: end, with what still runs."""


@dataclass(frozen=True, kw_only=True)
class End:
    """How an attempt's processes ended."""

    status: int | None
    """Of its first process, as `wait` gives it; `None`: it could not be started, or nobody knows."""
    exit_code: int | None
    """In the place of the status, if it could not be started."""
    kind: str
    reason: str
    started: float
    ended: float
    cpu_seconds: float = 0.0
    peak_memory: int = 0
    log_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Started:
    """From the keeper: the attempt runs."""

    name: str
    at: float
    confinement: str


@dataclass(frozen=True, kw_only=True)
class Grown:
    """From the keeper: the attempt's log is this long now."""

    name: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Ended:
    """From the keeper: nothing is left of the attempt's processes."""

    name: str
    end: End


@dataclass(frozen=True, kw_only=True)
class Hello:
    """From the keeper: the first thing it says. The attempts that it has follow, as `Started`, and then `Complete`."""

    confinement: str


@dataclass(frozen=True, kw_only=True)
class Complete:
    """From the keeper: what it has was said."""


Message = Start | Feed | Stop | Quit | Started | Grown | Ended | Hello | Complete
_CLASSES: dict[str, type] = {
    cls.__name__: cls for cls in (Start, Feed, Stop, Quit, Started, Grown, Ended, Hello, Complete)
}


def pack(message: Message) -> bytes:
    """One line."""
    body = {"type": type(message).__name__, **vars(message)}
    if isinstance(message, Ended):
        body["end"] = vars(message.end)
    return json.dumps(body).encode() + b"\n"


def unpack(line: bytes) -> Message:
    """Raises `ProtocolError` for what is no message."""
    try:
        body = json.loads(line)
        cls = _CLASSES[body.pop("type")]
        if cls is Ended:
            body["end"] = End(**body["end"])
        message: Message = cls(**body)
        return message
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ProtocolError(f"no message of a worker or its keeper: {error!r} in {line[:200]!r}") from error


def end_to_json(end: End) -> bytes:
    """For the attempt's folder."""
    return json.dumps(vars(end)).encode()


def end_from_json(data: bytes) -> End:
    """Raises `ValueError` and `TypeError` for what is no end."""
    return End(**json.loads(data))


class Lines:
    """Cut a stream of bytes into lines."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, data: bytes) -> list[bytes]:
        """The lines that are complete now."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines
