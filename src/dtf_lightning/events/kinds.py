"""What can happen in a run: the kinds of events, each a frozen dataclass whose fields are JSON.

A field that is added later needs a default, or a migration in `events`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened. `at` is in seconds since the epoch; who says so is `source`."""

    kind: ClassVar[str]
    at: float
    source: str = ""
    """A node id, or `node/local_rank` for a worker."""

    def to_json(self) -> dict[str, Any]:
        return {"v": SCHEMA_VERSION, "kind": self.kind, **asdict(self)}


@dataclass(frozen=True, kw_only=True)
class NodeJoined(Event):
    kind: ClassVar[str] = "node_joined"
    node: str
    incarnation: int
    num_workers: int


@dataclass(frozen=True, kw_only=True)
class NodeGoneEvent(Event):
    kind: ClassVar[str] = "node_gone"
    node: str
    cause: str


@dataclass(frozen=True, kw_only=True)
class LeaderElected(Event):
    kind: ClassVar[str] = "leader_elected"
    node: str
    epoch: int


@dataclass(frozen=True, kw_only=True)
class DirectiveIssued(Event):
    kind: ClassVar[str] = "directive"
    directive: str
    target: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class GenerationFormed(Event):
    kind: ClassVar[str] = "generation_formed"
    generation: int
    rescale: str
    """`start`, `join`, `leave`, `failure` or `mixed`."""
    reason: str
    members: tuple[str, ...]
    world_size: int


@dataclass(frozen=True, kw_only=True)
class WorkerRescaled(Event):
    """A worker's view of one rescale, written after its first step in the new generation."""

    kind: ClassVar[str] = "worker_rescaled"
    generation: int
    rescale: str
    reason: str
    world_size: int
    rank: int
    step: int
    """Optimizer steps committed when the first step of the new generation was done."""
    pause: float
    """Seconds from the beginning of the unwinding to the end of the first step."""
    phases: dict[str, float]
    """Seconds by phase: unwind, wait, group, state, wrap, first_step."""
    redrawn: bool
    """A step in flight was rolled back and its samples were drawn again."""
    incarnation: int = 0
    """Which start of the node's workers this is, from 1; 0 where an older version did not say. Since version 2."""


@dataclass(frozen=True, kw_only=True)
class WorkerLost(Event):
    kind: ClassVar[str] = "worker_lost"
    node: str
    local_rank: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class RunEnded(Event):
    kind: ClassVar[str] = "run_ended"
    phase: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class WorkerStarted(Event):
    """A worker has checked in with its agent and sets up."""

    kind: ClassVar[str] = "worker_started"
    run_id: str
    node: str
    local_rank: int
    incarnation: int
    pid: int
    host: str
    started_at: float
    """When the process was started: seconds since the epoch."""
    joiner: bool
    """The run trained already."""


@dataclass(frozen=True, kw_only=True)
class WorkerEnded(Event):
    """A worker's part in the run is over; one that is killed writes none."""

    kind: ClassVar[str] = "worker_ended"
    incarnation: int
    reason: str
    step: int


@dataclass(frozen=True, kw_only=True)
class GenerationEntered(Event):
    """A worker has formed a generation's process group and holds the same state as all its members."""

    kind: ClassVar[str] = "generation_entered"
    generation: int
    rescale: str
    reason: str
    members: tuple[str, ...]
    world_size: int
    rank: int
    incarnation: int
    step: int
    epoch: int
    formed_at: float
    """When the leader decided on it: seconds since the epoch."""
    failed: tuple[str, ...] = ()
    """Members whose failure led to it."""


@dataclass(frozen=True, kw_only=True)
class TrainingDescribed(Event):
    """What is trained and how, once per worker."""

    kind: ClassVar[str] = "training_described"
    description: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class HardwareSeen(Event):
    """What the node has, once per generation by its first worker."""

    kind: ClassVar[str] = "hardware"
    generation: int
    node: str
    hardware: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class StepsDone(Event):
    """Optimizer steps that this worker has committed since its last such event."""

    kind: ClassVar[str] = "steps"
    generation: int
    world_size: int
    rank: int
    epoch: int
    step: int
    """Optimizer steps committed in all."""
    steps: int
    """Of which since the last event."""
    seconds: float
    """Since the last event, or since the generation's first step."""
    samples: int
    """That the whole world consumed in these steps."""
    data_wait: float
    """Seconds of them that this worker waited for data."""
    loss: float | None = None
    """This worker's own, of the last batch; `None` where it is none or not finite."""
    lr: float | None = None
    rss: int = 0
    """Bytes of host memory that this process holds."""
    device_memory: int | None = None
    """Peak bytes allocated on the device; `None` without one."""


@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """A validation's results, by rank 0."""

    kind: ClassVar[str] = "evaluated"
    generation: int
    epoch: int
    step: int
    seconds: float
    metrics: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """By rank 0."""

    kind: ClassVar[str] = "checkpoint_saved"
    generation: int
    step: int
    epoch: int
    path: str
    seconds: float
    size: int
    """Bytes; 0 where the path is not on this machine."""


@dataclass(frozen=True, kw_only=True)
class CheckpointPruned(Event):
    """By rank 0."""

    kind: ClassVar[str] = "checkpoint_pruned"
    step: int
    path: str


@dataclass(frozen=True, kw_only=True)
class TimeSpent(Event):
    """What this worker's time went into so far, since its process was started."""

    kind: ClassVar[str] = "time_spent"
    generation: int
    incarnation: int
    wall: float
    """Seconds since the process was started, by the wall clock."""
    seconds: dict[str, float]
    """By bucket (`dtf_lightning.elastic.observe.time_account`), by the monotonic clock."""


@dataclass(frozen=True, kw_only=True)
class Diverged(Event):
    """Training diverges, by rank 0."""

    kind: ClassVar[str] = "diverged"
    generation: int
    divergence: str
    """`non-finite`, `spike` or `drift`."""
    onset: int
    """Step of the first bad value."""
    step: int
    """Of the value that decided."""
    reason: str
    action: str
    """What is done: `stop`, `rollback` or a callable's name."""


@dataclass(frozen=True, kw_only=True)
class RolledBack(Event):
    """What came of a divergence's rollback, by rank 0."""

    kind: ClassVar[str] = "rolled_back"
    generation: int
    step: int
    done: bool
    """False: training stops instead."""
    reason: str


@dataclass(frozen=True, kw_only=True)
class LearningRateScaled(Event):
    """The factor of `AdaptiveLearningRate` has changed, by rank 0."""

    kind: ClassVar[str] = "learning_rate_scaled"
    generation: int
    step: int
    world_size: int
    rule: str
    factors: dict[str, float]
    """By the optimizer's number."""


@dataclass(frozen=True, kw_only=True)
class WorkersPaced(Event):
    """How long each worker was busy with a step of its own, by rank 0."""

    kind: ClassVar[str] = "workers_paced"
    generation: int
    step: int
    seconds: float
    """Of a whole step, the same for all."""
    busy: dict[str, float]
    """Seconds of a step by `node/local_rank`: waiting for data, forward and backward, without waiting for the others."""


@dataclass(frozen=True, kw_only=True)
class StragglerSeen(Event):
    """A worker that has been slower than the others for long, or is no more; by rank 0."""

    kind: ClassVar[str] = "straggler"
    generation: int
    step: int
    worker: str
    busy: float
    usual: float
    """Of the median worker; seconds of a step, as `busy`."""
    over: bool = False
    """It is as quick as the others again."""


@dataclass(frozen=True, kw_only=True)
class UnknownEvent(Event):
    """A line of a kind that this version does not know, as it was read."""

    kind: ClassVar[str] = "unknown"
    data: dict[str, Any]


KINDS: dict[str, type[Event]] = {
    cls.kind: cls
    for cls in (
        NodeJoined, NodeGoneEvent, LeaderElected, DirectiveIssued, GenerationFormed, WorkerRescaled, WorkerLost, RunEnded,
        WorkerStarted, WorkerEnded, GenerationEntered, TrainingDescribed, HardwareSeen, StepsDone, Evaluated,
        CheckpointSaved, CheckpointPruned, TimeSpent, Diverged, RolledBack, LearningRateScaled, WorkersPaced,
        StragglerSeen,
    )
}  # fmt: skip

IMPORTANT = frozenset({
    "node_joined", "node_gone", "leader_elected", "worker_lost", "run_ended", "generation_formed", "diverged",
    "rolled_back", "learning_rate_scaled", "straggler", "checkpoint_saved", "evaluated",
})  # fmt: skip
"""Kinds that people want to see while a run goes on: `dtf status`."""


def describe(data: Mapping[str, Any]) -> str:
    """One of the important events in a sentence, from its JSON; the kind's name for any other."""
    match data["kind"]:
        case "node_joined":
            return f"{data['node']} started {data['num_workers']} workers (start {data['incarnation']})"
        case "node_gone":
            return f"{data['node']} is gone: {data['cause']}"
        case "leader_elected":
            return f"{data['node']} leads (epoch {data['epoch']})"
        case "worker_lost":
            return f"{data['node']}/{data['local_rank']} was lost: {data['reason']}"
        case "generation_formed":
            return f"generation {data['generation']} with {data['world_size']} workers: {data['reason']}"
        case "run_ended":
            return f"run {data['phase']}: {data['reason']}"
        case "diverged":
            return (
                f"training diverges ({data['divergence']}, step {data['onset']} to {data['step']}, "
                f"{data['action']}): {data['reason']}"
            )
        case "rolled_back":
            return str(data["reason"])
        case "learning_rate_scaled":
            factors = ", ".join(f"{factor:.4g}" for factor in data["factors"].values())
            return f"learning rate factor {factors} ({data['rule']}) from step {data['step']} on"
        case "straggler" if data.get("over"):
            return f"{data['worker']} is as quick as the others again"
        case "straggler":
            return (
                f"{data['worker']} is slow: busy {1000 * data['busy']:.0f} ms of a step, the median worker "
                f"{1000 * data['usual']:.0f} ms"
            )
        case "checkpoint_saved":
            return f"checkpoint of step {data['step']}: {data['path']}"
        case "evaluated":
            metrics = ", ".join(f"{name} {value:.4g}" for name, value in data["metrics"].items())
            return f"evaluated at step {data['step']}: {metrics}"
        case kind:
            return str(kind)
