"""The messages between an agent and its workers: one line of JSON each, over a unix socket.

The agent listens on the path in `DTF_AGENT_SOCKET`; a worker connects once, when `ElasticCallback` is constructed. An
end of file is a death: of the worker, whose lifeline mostly shows it earlier, and of the agent for its workers, who then
stop (no orphans).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from dtf_lightning.errors import ProtocolError

PROTOCOL_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Message:
    """One message; its kind and its fields are what travels."""

    kind: ClassVar[str]

    def encode(self) -> bytes:
        return json.dumps({"kind": self.kind, **asdict(self)}, separators=(",", ":")).encode() + b"\n"


# --- worker to agent -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Hello(Message):
    """The first message on the socket: which of the node's workers has connected."""

    kind: ClassVar[str] = "hello"
    local_rank: int
    pid: int
    version: int = PROTOCOL_VERSION


@dataclass(frozen=True, kw_only=True)
class HoldsLifeline(Message):
    """The file that comes with it is the worker's lifeline (`processes/lifeline.py`): its end shows there first."""

    kind: ClassVar[str] = "lifeline"


@dataclass(frozen=True, kw_only=True)
class Ready(Message):
    """The worker is unwound (or set up) and waits for a generation above `after` (0 for a newcomer)."""

    kind: ClassVar[str] = "ready"
    after: int
    fingerprint: dict[str, str] = field(default_factory=dict)
    """Settings that do not depend on the world, by name; compared with the run's before a newcomer is let in."""
    parameters: tuple[str, ...] = ()
    """`name dtype shape` of every parameter and buffer, in order; compared with the run's likewise."""
    run_dir: str = ""
    """The folder of this worker's event log: the agent's event log belongs beside it."""


@dataclass(frozen=True, kw_only=True)
class At(Message):
    """The answer to `Prepare`: the number of step boundaries that the worker has passed in the running generation."""

    kind: ClassVar[str] = "at"
    target: int
    boundary: int


@dataclass(frozen=True, kw_only=True)
class Active(Message):
    """The worker has reached the generation's first step boundary: the group is formed, all hold the same state."""

    kind: ClassVar[str] = "active"
    generation: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Trained(Message):
    """The worker holds a state in which an optimizer step of this run is made, so that the run must not begin anew."""

    kind: ClassVar[str] = "trained"


@dataclass(frozen=True, kw_only=True)
class Suspect(Message):
    """A collective of this generation has failed in the worker, for a reason that it does not know."""

    kind: ClassVar[str] = "suspect"
    generation: int
    error: str


@dataclass(frozen=True, kw_only=True)
class Leaving(Message):
    """The worker itself was asked to stop (SIGTERM, SIGINT): its node leaves."""

    kind: ClassVar[str] = "leaving"
    reason: str


@dataclass(frozen=True, kw_only=True)
class Left(Message):
    """The worker is unwound at the agreed boundary and about to exit with 0."""

    kind: ClassVar[str] = "left"


@dataclass(frozen=True, kw_only=True)
class LoopEnds(Message):
    """The worker leaves the training loop behind this batch: early (`trainer.should_stop`), or at the end of training."""

    kind: ClassVar[str] = "loop_ends"
    generation: int
    batches: int
    """The number of batches that the worker has begun in this generation."""
    step: int
    reason: str
    withdrawn: bool = False
    """The worker trains on after all: what it said earlier does not count any more."""


@dataclass(frozen=True, kw_only=True)
class Finished(Message):
    """The worker came to the end of training in this generation and waits for `Finish` or `Fail`."""

    kind: ClassVar[str] = "finished"
    generation: int
    step: int


@dataclass(frozen=True, kw_only=True)
class Dying(Message):
    """The process has met a fatal error; the end of file follows when Lightning has torn down, which takes seconds."""

    kind: ClassVar[str] = "dying"
    error: str
    refused: bool = False
    """The worker has found that its node does not belong into the run: starting it again would not help."""
    aftermath: bool = False
    """The worker ends because another member's death has left it in a wait that nothing ends."""


@dataclass(frozen=True, kw_only=True)
class Heartbeat(Message):
    """The worker lives, and this is its last global step."""

    kind: ClassVar[str] = "heartbeat"
    step: int
    generation: int = 0
    batches: int = 0
    """The number of batches that the worker has begun in this generation."""


@dataclass(frozen=True, kw_only=True)
class Happened(Message):
    """An event that people who watch the run want to know of."""

    kind: ClassVar[str] = "happened"
    event: dict[str, Any]
    """The event's fields, as in the event log."""


# --- agent to worker -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Welcome(Message):
    """The answer to `Hello`: what the worker needs to set itself up."""

    kind: ClassVar[str] = "welcome"
    run_id: str
    node: str
    joiner: bool
    """Whether a generation is training already: the worker's state then comes from its members."""
    rank: int
    world_size: int
    """A provisional world, for set-up before the first generation: rank < world_size, rank 0 only on the first node."""
    store_host: str
    store_port: int
    """The port of the agent's own TCPStore, for the node's local group."""
    incarnation: int
    num_local_workers: int
    heartbeat_interval: float
    """Seconds between the worker's heartbeats."""
    rescale_timeout: float
    """Seconds from `Fail`, or from the boundary of a `Stop`, to `Ready`, after which the worker ends itself."""


@dataclass(frozen=True, kw_only=True)
class Prepare(Message):
    """The worker has to say at which boundary it is."""

    kind: ClassVar[str] = "prepare"
    target: int


@dataclass(frozen=True, kw_only=True)
class Stop(Message):
    """All workers stop at this boundary, for a planned rescale."""

    kind: ClassVar[str] = "stop"
    target: int
    boundary: int
    leave: bool = False
    last: bool = False
    """No member stays: whoever leaves has to leave the state behind, for those who come."""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Fail(Message):
    """The running generation is broken: the worker has to unwind at once."""

    kind: ClassVar[str] = "fail"
    target: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Assign(Message):
    """The next generation, and this worker's place in it."""

    kind: ClassVar[str] = "assign"
    generation: dict[str, Any]
    """What `Generation.to_json()` gave."""
    rank: int
    world_size: int


@dataclass(frozen=True, kw_only=True)
class Finish(Message):
    """The run is over: sent to a member after its `Finished`, to a newcomer or spare instead of an `Assign`."""

    kind: ClassVar[str] = "finish"
    reason: str
    run_over: bool = True
    """False: only this node leaves, and its workers wait for no generation any more."""


@dataclass(frozen=True, kw_only=True)
class Abort(Message):
    """The leader has aborted the run: every worker raises the reason."""

    kind: ClassVar[str] = "abort"
    reason: str


@dataclass(frozen=True, kw_only=True)
class Refused(Message):
    """The worker is not let in, because its settings or its model are not the run's."""

    kind: ClassVar[str] = "refused"
    reason: str


_KINDS: dict[str, type[Message]] = {
    cls.kind: cls
    for cls in (
        Hello, HoldsLifeline, Ready, At, Active, Trained, Suspect, Leaving, Left, LoopEnds, Finished, Dying, Heartbeat, Happened,
        Welcome, Prepare, Stop, Fail, Assign, Finish, Abort, Refused,
    )
}  # fmt: skip


def decode(line: bytes | str) -> Message:
    """Return the message that a line holds. Raises `ProtocolError` for anything else."""
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
