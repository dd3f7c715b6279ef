"""What can happen in an elastic run: the kinds of events that agents and workers write to the run's folder.

A new kind is one dataclass here: its fields, and for an important one the sentence that people read. Who says so,
`Event.source`, is a node's id, or `node/local_rank` for a worker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dtf_lightning.events.registry import Event, EventRegistry


def _from_1(data: dict[str, Any]) -> None:
    """Version 1 did not say which start of a node's workers a rescaled worker belonged to."""
    if data.get("kind") == "worker_rescaled":
        data["incarnation"] = 0


ELASTIC_EVENTS = EventRegistry(
    version=2, migrations={1: _from_1}, without_log="training goes on, `dtf report` will miss events"
)
"""The important ones are in `dtf status` and `dtf watch` while the run goes on, and in reports."""


@ELASTIC_EVENTS.register("node_joined", important=True)
@dataclass(frozen=True, kw_only=True)
class NodeJoined(Event):
    node: str
    incarnation: int
    num_workers: int

    def describe(self) -> str:
        return f"{self.node} started {self.num_workers} workers (start {self.incarnation})"


@ELASTIC_EVENTS.register("node_gone", important=True)
@dataclass(frozen=True, kw_only=True)
class NodeGoneEvent(Event):
    node: str
    cause: str

    def describe(self) -> str:
        return f"{self.node} is gone: {self.cause}"


@ELASTIC_EVENTS.register("leader_elected", important=True)
@dataclass(frozen=True, kw_only=True)
class LeaderElected(Event):
    node: str
    epoch: int

    def describe(self) -> str:
        return f"{self.node} leads (epoch {self.epoch})"


@ELASTIC_EVENTS.register("directive")
@dataclass(frozen=True, kw_only=True)
class DirectiveIssued(Event):
    directive: str
    target: int
    reason: str


@ELASTIC_EVENTS.register("generation_formed", important=True)
@dataclass(frozen=True, kw_only=True)
class GenerationFormed(Event):
    generation: int
    rescale: str
    """`start`, `join`, `leave`, `failure` or `mixed`."""
    reason: str
    members: tuple[str, ...]
    world_size: int
    instance: str = ""
    """The run's instance: a run that was resumed under its id has several, which number their generations from 1."""

    def describe(self) -> str:
        return f"generation {self.generation} with {self.world_size} workers: {self.reason}"


@ELASTIC_EVENTS.register("worker_rescaled")
@dataclass(frozen=True, kw_only=True)
class WorkerRescaled(Event):
    """A worker's view of one rescale, written after its first step in the new generation."""

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


@ELASTIC_EVENTS.register("worker_lost", important=True)
@dataclass(frozen=True, kw_only=True)
class WorkerLost(Event):
    node: str
    local_rank: int
    reason: str

    def describe(self) -> str:
        return f"{self.node}/{self.local_rank} was lost: {self.reason}"


@ELASTIC_EVENTS.register("run_ended", important=True)
@dataclass(frozen=True, kw_only=True)
class RunEnded(Event):
    phase: str
    reason: str

    def describe(self) -> str:
        return f"run {self.phase}: {self.reason}"


@ELASTIC_EVENTS.register("worker_started")
@dataclass(frozen=True, kw_only=True)
class WorkerStarted(Event):
    """A worker has checked in with its agent and sets up."""

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


@ELASTIC_EVENTS.register("worker_ended")
@dataclass(frozen=True, kw_only=True)
class WorkerEnded(Event):
    """A worker's part in the run is over; one that is killed writes none."""

    incarnation: int
    reason: str
    step: int


@ELASTIC_EVENTS.register("generation_entered")
@dataclass(frozen=True, kw_only=True)
class GenerationEntered(Event):
    """A worker has formed a generation's process group and holds the same state as all its members."""

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
    instance: str = ""
    """The run's instance: a run that was resumed under its id has several, which number their generations from 1."""


@ELASTIC_EVENTS.register("training_described")
@dataclass(frozen=True, kw_only=True)
class TrainingDescribed(Event):
    """What is trained and how, once per worker."""

    description: dict[str, Any]


@ELASTIC_EVENTS.register("hardware")
@dataclass(frozen=True, kw_only=True)
class HardwareSeen(Event):
    """What the node has, once per generation by its first worker."""

    generation: int
    node: str
    hardware: dict[str, Any]


@ELASTIC_EVENTS.register("steps")
@dataclass(frozen=True, kw_only=True)
class StepsDone(Event):
    """Optimizer steps that this worker has committed since its last such event."""

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


@ELASTIC_EVENTS.register("evaluated", important=True)
@dataclass(frozen=True, kw_only=True)
class Evaluated(Event):
    """A validation's results, by rank 0."""

    generation: int
    epoch: int
    step: int
    seconds: float
    metrics: dict[str, float]

    def describe(self) -> str:
        metrics = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        return f"evaluated at step {self.step}: {metrics}"


@ELASTIC_EVENTS.register("checkpoint_saved", important=True)
@dataclass(frozen=True, kw_only=True)
class CheckpointSaved(Event):
    """By rank 0."""

    generation: int
    step: int
    epoch: int
    path: str
    seconds: float
    size: int
    """Bytes; 0 where the path is not on this machine."""

    def describe(self) -> str:
        return f"checkpoint of step {self.step}: {self.path}"


@ELASTIC_EVENTS.register("checkpoint_pruned")
@dataclass(frozen=True, kw_only=True)
class CheckpointPruned(Event):
    """By rank 0."""

    step: int
    path: str


@ELASTIC_EVENTS.register("time_spent")
@dataclass(frozen=True, kw_only=True)
class TimeSpent(Event):
    """What this worker's time went into so far, since its process was started."""

    generation: int
    incarnation: int
    wall: float
    """Seconds since the process was started, by the wall clock."""
    seconds: dict[str, float]
    """By bucket (`dtf_lightning.elastic.observe.time_account`), by the monotonic clock."""


@ELASTIC_EVENTS.register("diverged", important=True)
@dataclass(frozen=True, kw_only=True)
class Diverged(Event):
    """Training diverges, by rank 0."""

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

    def describe(self) -> str:
        return f"training diverges ({self.divergence}, step {self.onset} to {self.step}, {self.action}): {self.reason}"


@ELASTIC_EVENTS.register("rolled_back", important=True)
@dataclass(frozen=True, kw_only=True)
class RolledBack(Event):
    """What came of a divergence's rollback, by rank 0."""

    generation: int
    step: int
    done: bool
    """False: training stops instead."""
    reason: str

    def describe(self) -> str:
        return self.reason


@ELASTIC_EVENTS.register("learning_rate_scaled", important=True)
@dataclass(frozen=True, kw_only=True)
class LearningRateScaled(Event):
    """The factor of `AdaptiveLearningRate` has changed, by rank 0."""

    generation: int
    step: int
    world_size: int
    rule: str
    factors: dict[str, float]
    """By the optimizer's number."""

    def describe(self) -> str:
        factors = ", ".join(f"{factor:.4g}" for factor in self.factors.values())
        return f"learning rate factor {factors} ({self.rule}) from step {self.step} on"


@ELASTIC_EVENTS.register("workers_paced")
@dataclass(frozen=True, kw_only=True)
class WorkersPaced(Event):
    """How long each worker was busy with a step of its own, by rank 0."""

    generation: int
    step: int
    seconds: float
    """Of a whole step, the same for all."""
    busy: dict[str, float]
    """Seconds of a step by `node/local_rank`: waiting for data, forward and backward, without waiting for the others."""


@ELASTIC_EVENTS.register("straggler", important=True)
@dataclass(frozen=True, kw_only=True)
class StragglerSeen(Event):
    """A worker that has been slower than the others for long, or is no more; by rank 0."""

    generation: int
    step: int
    worker: str
    busy: float
    usual: float
    """Of the median worker; seconds of a step, as `busy`."""
    over: bool = False
    """It is as quick as the others again."""

    def describe(self) -> str:
        if self.over:
            return f"{self.worker} is as quick as the others again"
        return (
            f"{self.worker} is slow: busy {1000 * self.busy:.0f} ms of a step, the median worker "
            f"{1000 * self.usual:.0f} ms"
        )
