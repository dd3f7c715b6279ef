"""What an agent and its workers say to each other: JSON lines over a unix socket.

The agent listens on the path in `DTF_AGENT_SOCKET`; a worker connects once, when `ElasticCallback` is constructed. An
end of file is a death: of the worker at once, of the agent for its workers, who then stop (no orphans).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from dtf_lightning.errors import ProtocolError

PROTOCOL_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Message:
    kind: ClassVar[str]

    def encode(self) -> bytes:
        return json.dumps({"kind": self.kind, **asdict(self)}, separators=(",", ":")).encode() + b"\n"


# --- worker to agent -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Hello(Message):
    kind: ClassVar[str] = "hello"
    local_rank: int
    pid: int
    version: int = PROTOCOL_VERSION


@dataclass(frozen=True, kw_only=True)
class Ready(Message):
    """Unwound (or set up); waiting for a generation above `after` (0 for a newcomer)."""

    kind: ClassVar[str] = "ready"
    after: int
    fingerprint: dict[str, str] = field(default_factory=dict)
    """World-independent settings by name; compared with the run's before a newcomer is let in."""
    parameters: tuple[str, ...] = ()
    """`name dtype shape` of every parameter and buffer, in order; compared likewise."""
    run_dir: str = ""
    """Where this worker writes its event log: the agent's belongs beside it."""


@dataclass(frozen=True, kw_only=True)
class At(Message):
    """Answer to `Prepare`: the number of step boundaries passed in the running generation."""

    kind: ClassVar[str] = "at"
    target: int
    boundary: int


@dataclass(frozen=True, kw_only=True)
class Active(Message):
    """The first step boundary of this generation was reached: group formed, state equal."""

    kind: ClassVar[str] = "active"
    generation: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Suspect(Message):
    kind: ClassVar[str] = "suspect"
    generation: int
    error: str


@dataclass(frozen=True, kw_only=True)
class Leaving(Message):
    """The worker itself was asked to go (SIGTERM, SIGINT): its node leaves."""

    kind: ClassVar[str] = "leaving"
    reason: str


@dataclass(frozen=True, kw_only=True)
class Left(Message):
    """Unwound at the agreed boundary; about to exit with 0."""

    kind: ClassVar[str] = "left"


@dataclass(frozen=True, kw_only=True)
class Finished(Message):
    """Came to the end of training in this generation; waits for `Finish` or `Fail`."""

    kind: ClassVar[str] = "finished"
    generation: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Dying(Message):
    """A fatal error of this process; the end of file follows when Lightning has torn down, which takes seconds."""

    kind: ClassVar[str] = "dying"
    error: str


@dataclass(frozen=True, kw_only=True)
class Heartbeat(Message):
    kind: ClassVar[str] = "heartbeat"
    step: int


@dataclass(frozen=True, kw_only=True)
class Happened(Message):
    """Something that people who watch the run want to know."""

    kind: ClassVar[str] = "happened"
    event: dict[str, Any]
    """As in the event log."""


# --- agent to worker -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Welcome(Message):
    kind: ClassVar[str] = "welcome"
    run_id: str
    node: str
    joiner: bool
    """A generation is training already: state comes from its members."""
    rank: int
    world_size: int
    """Provisional, for set-up before the first generation: rank < world_size, rank 0 only for the first node."""
    store_host: str
    store_port: int
    """The agent's own TCPStore, for the node's local group."""
    incarnation: int
    num_local_workers: int
    heartbeat_interval: float
    """Seconds between the worker's heartbeats."""
    rescale_timeout: float
    """Seconds from `Fail` or a stop boundary to `Ready`, after which the worker ends itself."""


@dataclass(frozen=True, kw_only=True)
class Prepare(Message):
    kind: ClassVar[str] = "prepare"
    target: int


@dataclass(frozen=True, kw_only=True)
class Stop(Message):
    kind: ClassVar[str] = "stop"
    target: int
    boundary: int
    leave: bool = False
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Fail(Message):
    kind: ClassVar[str] = "fail"
    target: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Assign(Message):
    """The generation and this worker's place in it."""

    kind: ClassVar[str] = "assign"
    generation: dict[str, Any]
    """`Generation.to_json()`."""
    rank: int
    world_size: int


@dataclass(frozen=True, kw_only=True)
class Finish(Message):
    """The run is over: to a member, after its `Finished`; to a newcomer or spare, instead of an `Assign`."""

    kind: ClassVar[str] = "finish"
    reason: str


@dataclass(frozen=True, kw_only=True)
class Abort(Message):
    kind: ClassVar[str] = "abort"
    reason: str


@dataclass(frozen=True, kw_only=True)
class Refused(Message):
    kind: ClassVar[str] = "refused"
    reason: str


_KINDS: dict[str, type[Message]] = {
    cls.kind: cls
    for cls in (
        Hello, Ready, At, Active, Suspect, Leaving, Left, Finished, Dying, Heartbeat, Happened,
        Welcome, Prepare, Stop, Fail, Assign, Finish, Abort, Refused,
    )
}  # fmt: skip


def decode(line: bytes | str) -> Message:
    """The message of one line. Raises `ProtocolError` for anything else."""
    try:
        fields = json.loads(line)
        cls = _KINDS[fields.pop("kind")]
        if "parameters" in fields:
            fields["parameters"] = tuple(fields["parameters"])
        return cls(**fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProtocolError(
            f"expected one JSON message of protocol version {PROTOCOL_VERSION}, got {line[:200]!r} ({error}); "
            "are two versions of dtf-lightning installed on this node?"
        ) from error
