"""What is seen of a farm at one moment, from which `findings` says what is wrong. Pure values; all ages are seconds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from dtf_lightning.farm.rules.health import HealthStatus


@dataclass(frozen=True, kw_only=True)
class WorkerErrors:
    """Of a worker's latest runs."""

    runs: int = 0
    failed: int = 0
    """By a fault of their own, not because the worker was lost."""
    alone: int = 0
    """Tests that failed here last, never passed here, and passed elsewhere."""


@dataclass(frozen=True, kw_only=True)
class SeenWorker:
    """A worker."""

    name: str
    connected: bool
    draining: bool = False
    cordoned: bool = False
    cordoned_at: float = 0.0
    """When the farm last cordoned it by itself, seconds since the epoch; 0: never."""
    cordoned_for: str = ""
    """Why, while it is cordoned for that."""
    device: str = ""
    """Its device class."""
    num_tasks: int = 0
    health: HealthStatus | None = None
    """Of its machine, as it last said; `None`: it has not."""
    health_reason: str = ""
    report_age: float | None = None
    """Since its last report, by the worker's clock; below 0 where that is ahead."""
    errors: WorkerErrors = WorkerErrors()
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of its last report, as `WorkerHealth.metrics`."""


@dataclass(frozen=True, kw_only=True)
class SeenCoordinator:
    """A coordinator."""

    name: str
    there: bool
    enabled: bool = True
    health: HealthStatus = HealthStatus.HEALTHY
    reasons: tuple[str, ...] = ()
    word_age: float | None = None
    """Since it last said how its machine is."""


@dataclass(frozen=True, kw_only=True)
class SeenEtcd:
    """The record's store."""

    members: int = 0
    """0: not known yet."""
    answering: int = 0
    latency: float | None = None
    """Of a read, in seconds: the median of the latest."""
    size: int | None = None
    quota: int = 0
    """Bytes, of the largest member's file."""
    refusal: str = ""
    """Why new work is refused for its size."""
    ids: str = ""
    """Why the ids of what has ended will fill it."""
    problem: str = ""


@dataclass(frozen=True, kw_only=True)
class SeenQueue:
    """Tasks that wait for a worker and need devices of one class."""

    device: str
    waiting: int
    oldest: float
    """For how long the oldest has waited."""
    task: str
    """Its id."""
    overtaken: int = 0
    """Tasks of this class that run, came later, and are not more urgent."""
    lacking: str = ""
    """What no worker has that it needs."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """All of it."""

    leader: str = ""
    workers: tuple[SeenWorker, ...] = ()
    coordinators: tuple[SeenCoordinator, ...] = ()
    etcd: SeenEtcd = SeenEtcd()
    queues: tuple[SeenQueue, ...] = ()
    tasks: Mapping[str, int] = field(default_factory=dict)
    """What tasks that are not done are at -> how many."""
    results: HealthStatus = HealthStatus.HEALTHY
    results_reason: str = ""
    files_problem: str = ""
    """Why what is old cannot be removed."""


@dataclass(frozen=True)
class RunSeen:
    """How a run of a test ended on a worker."""

    test: tuple[str, str]
    """Project and name."""
    worker: str
    passed: bool


def errors_of(runs: Iterable[RunSeen]) -> Mapping[str, WorkerErrors]:
    """Return what each worker's runs say of it. `runs`: the latest first; without those that were lost with a worker."""
    counts: dict[str, list[int]] = {}
    passed_on: dict[tuple[str, str], set[str]] = {}
    failed_last: dict[str, set[tuple[str, str]]] = {}
    seen: set[tuple[tuple[str, str], str]] = set()
    for run in runs:
        count = counts.setdefault(run.worker, [0, 0])
        count[0] += 1
        count[1] += not run.passed
        if run.passed:
            passed_on.setdefault(run.test, set()).add(run.worker)
        elif (run.test, run.worker) not in seen:
            failed_last.setdefault(run.worker, set()).add(run.test)
        seen.add((run.test, run.worker))
    return {
        worker: WorkerErrors(
            runs=number,
            failed=failed,
            alone=sum(
                worker not in (passed := passed_on.get(test, set())) and bool(passed)
                for test in failed_last.get(worker, ())
            ),
        )
        for worker, (number, failed) in counts.items()
    }
