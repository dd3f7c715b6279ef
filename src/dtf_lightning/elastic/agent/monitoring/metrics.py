"""`Metrics` serves a node's metrics for Prometheus over HTTP. Importing this needs the extra `metrics`."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, start_http_server

from dtf_lightning import __version__
from dtf_lightning.elastic.events import (
    CheckpointPruned,
    CheckpointSaved,
    Diverged,
    Evaluated,
    GenerationEntered,
    GenerationFormed,
    LeaderElected,
    LearningRateScaled,
    NodeGoneEvent,
    NodeJoined,
    RolledBack,
    StepsDone,
    StragglerSeen,
    TimeSpent,
    WorkerEnded,
    WorkerLost,
    WorkerRescaled,
    WorkersPaced,
    WorkerStarted,
)
from dtf_lightning.events.registry import Event

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""The upper edges of the histograms' buckets, in seconds."""

GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "generation": ("Number of the generation that this node is in.", ()),
    "world_size": ("Workers of that generation.", ()),
    "nodes": ("Nodes of that generation.", ()),
    "workers": ("Workers of this node that run.", ()),
    "epoch": ("Epoch that is trained.", ()),
    "step": ("Optimizer steps committed.", ()),
    "samples_per_second": ("Of the whole world, as this node saw it last.", ()),
    "steps_per_second": ("As this node saw it last.", ()),
    "loss": ("Of a worker's last batch.", ("worker",)),
    "learning_rate": ("Of the first parameter group.", ("worker",)),
    "data_wait_seconds": ("Waited for data per step.", ("worker",)),
    "memory_bytes": ("Host memory that a worker holds.", ("worker",)),
    "device_memory_bytes": ("Peak of what a worker allocated on its device.", ("worker",)),
    "evaluation": ("Last value of a metric of validations; where rank 0 is.", ("metric",)),
    "goodput_ratio": ("Share of a worker's time since its start that went into committed steps.", ("worker",)),
    "time_seconds": ("A worker's time since its start, by what it went into.", ("worker", "bucket")),
    "learning_rate_factor": ("That the world's size gives the learning rate; where rank 0 is.", ("optimizer",)),
    "busy_seconds": ("Of a step, without waiting for the others; every worker's, where rank 0 is.", ("worker",)),
    "straggler": ("1 while a worker is slower than the others; where rank 0 is.", ("worker",)),
    "checkpoint_bytes": ("Size of the last checkpoint; where rank 0 is.", ()),
    "checkpoint_step": ("Optimizer step of the last checkpoint; where rank 0 is.", ()),
}

COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rescales": ("Rescales that this node's workers went through.", ("kind",)),
    "node_starts": ("Times that this node has started its workers.", ()),
    "worker_deaths": ("Workers of this node that were lost.", ()),
    "nodes_gone": ("Nodes that died, as the leader saw it; where the leader is.", ()),
    "leader_terms": ("Times that this node has become leader.", ()),
    "divergences": ("Times that training diverged; where rank 0 is.", ("kind",)),
    "rollbacks": ("Rollbacks after a divergence that were done; where rank 0 is.", ()),
    "checkpoints": ("Checkpoints saved; where rank 0 is.", ()),
    "checkpoints_pruned": ("Checkpoints removed; where rank 0 is.", ()),
    "samples": ("Samples that the world consumed while rank 0 was on this node.", ()),
    "events": ("Events of every kind in this node's logs.", ("kind",)),
}

HISTOGRAMS: dict[str, tuple[str, tuple[str, ...]]] = {
    "rescale_pause_seconds": ("From leaving a generation to the first step's end in the next, by worker.", ("kind",)),
    "rescale_phase_seconds": ("Parts of that pause.", ("phase",)),
    "checkpoint_stall_seconds": ("For how long a checkpoint held training up.", ()),
    "validation_seconds": ("For how long validations took.", ()),
}


class Metrics:
    """A server of `http://*:port/metrics`; the names of its metrics begin with `dtf_`.

    Raises `OSError` when the port cannot be had. Port 0: a free one, which `port` says.
    """

    def __init__(self, port: int, run_id: str, node: str) -> None:
        self.registry = CollectorRegistry()
        Info("dtf_node", "Whose metrics these are.", registry=self.registry).info(
            {"run": run_id, "node": node, "version": __version__}
        )
        self._gauges = {name: Gauge(f"dtf_{name}", *of, registry=self.registry) for name, of in GAUGES.items()}
        self._counters = {name: Counter(f"dtf_{name}", *of, registry=self.registry) for name, of in COUNTERS.items()}
        self._histograms = {
            name: Histogram(f"dtf_{name}", *of, buckets=SECONDS, registry=self.registry)
            for name, of in HISTOGRAMS.items()
        }
        self._workers: set[str] = set()
        self._rescaled = 0
        self._server, self._thread = start_http_server(port, registry=self.registry)
        self.port = int(self._server.server_port)

    def take(self, event: Event) -> None:
        """Update the metrics by an event."""
        match event:
            case WorkerRescaled():
                self._rescale(event)
            case StepsDone():
                self._steps(event)
            case TimeSpent():
                self._time(event)
            case GenerationEntered() | GenerationFormed():
                self._set(generation=event.generation, world_size=event.world_size, nodes=len(event.members))
            case Evaluated():
                self._histograms["validation_seconds"].observe(event.seconds)
                for name, value in event.metrics.items():
                    self._gauges["evaluation"].labels(name).set(value)
            case CheckpointSaved():
                self._counters["checkpoints"].inc()
                self._histograms["checkpoint_stall_seconds"].observe(event.seconds)
                self._set(checkpoint_bytes=event.size, checkpoint_step=event.step)
            case WorkerStarted() | WorkerEnded() | WorkerLost() | NodeJoined():
                self._worker(event)
            case LearningRateScaled() | WorkersPaced() | StragglerSeen() | Diverged() | RolledBack():
                self._of_rank_zero(event)
            case CheckpointPruned() | NodeGoneEvent() | LeaderElected():
                names = {
                    "checkpoint_pruned": "checkpoints_pruned", "node_gone": "nodes_gone",
                    "leader_elected": "leader_terms",
                }  # fmt: skip
                self._counters[names[event.kind]].inc()
        self._counters["events"].labels(event.kind).inc()

    def _rescale(self, event: WorkerRescaled) -> None:
        if event.generation > self._rescaled:  # once, however many workers the node has
            self._rescaled = event.generation
            self._counters["rescales"].labels(event.rescale).inc()
        self._histograms["rescale_pause_seconds"].labels(event.rescale).observe(event.pause)
        for phase, seconds in event.phases.items():
            self._histograms["rescale_phase_seconds"].labels(phase).observe(seconds)

    def _steps(self, event: StepsDone) -> None:
        self._set(step=event.step, epoch=event.epoch)
        if event.seconds > 0:
            rates = {"samples_per_second": event.samples, "steps_per_second": event.steps}
            self._set(**{name: count / event.seconds for name, count in rates.items()})
        if event.rank == 0:
            self._counters["samples"].inc(event.samples)
        values = {
            "loss": event.loss, "learning_rate": event.lr, "memory_bytes": event.rss,
            "device_memory_bytes": event.device_memory,
            "data_wait_seconds": event.data_wait / event.steps if event.steps else None,
        }  # fmt: skip
        for name, value in values.items():
            if value is not None:
                self._gauges[name].labels(event.source).set(value)

    def _time(self, event: TimeSpent) -> None:
        for bucket, seconds in event.seconds.items():
            self._gauges["time_seconds"].labels(event.source, bucket).set(seconds)
        if event.wall > 0:
            self._gauges["goodput_ratio"].labels(event.source).set(event.seconds.get("productive", 0.0) / event.wall)

    def _worker(self, event: WorkerStarted | WorkerEnded | WorkerLost | NodeJoined) -> None:
        match event:
            case WorkerStarted():
                self._workers.add(event.source)
            case WorkerEnded():
                self._workers.discard(event.source)
            case WorkerLost():
                self._counters["worker_deaths"].inc()
                self._workers.discard(f"{event.node}/{event.local_rank}")
            case NodeJoined():
                self._counters["node_starts"].inc()
                self._workers.clear()
        self._set(workers=len(self._workers))

    def _of_rank_zero(self, event: LearningRateScaled | WorkersPaced | StragglerSeen | Diverged | RolledBack) -> None:
        match event:
            case LearningRateScaled():
                for optimizer, factor in event.factors.items():
                    self._gauges["learning_rate_factor"].labels(optimizer).set(factor)
            case WorkersPaced():
                for worker, busy in event.busy.items():
                    self._gauges["busy_seconds"].labels(worker).set(busy)
            case StragglerSeen():
                self._gauges["straggler"].labels(event.worker).set(0 if event.over else 1)
            case Diverged():
                self._counters["divergences"].labels(event.divergence).inc()
            case RolledBack():
                self._counters["rollbacks"].inc(int(event.done))

    def _set(self, **values: float) -> None:
        for name, value in values.items():
            self._gauges[name].set(value)

    def close(self) -> None:
        """End the server, so that its port is free again."""
        server: Any = self._server
        server.shutdown()
        server.server_close()
        self._thread.join(5.0)
