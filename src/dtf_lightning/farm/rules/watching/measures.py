"""Measures: what a farm's metrics are called and mean, and their values from what is seen at one moment. Pure.

Alerts are about these names, and Prometheus reads them under the same: one table for both. What is counted over time is
for Prometheus alone, which knows what to do when a coordinator that starts anew begins at 0.

Rules:
- Names follow Prometheus' conventions: the unit in the singular base unit at the end, shares as ratios from 0 to 1.
- A metric has one label at most, whose value is the sample's subject: which worker, which class of devices, which state.
- What is not known has no sample: neither 0 nor NaN is told in its place.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dtf_lightning.farm.rules.health import HealthStatus
from dtf_lightning.farm.rules.watching.findings import Finding
from dtf_lightning.farm.rules.watching.observation import Observation, SeenEtcd, SeenWorker


@dataclass(frozen=True)
class Metric:
    """What a metric means."""

    name: str
    help: str
    label: str = ""
    """What tells its samples apart; "": there is one sample."""


@dataclass(frozen=True)
class Sample:
    """One value of a metric."""

    metric: str
    subject: str
    """The label's value; "" where there is no label."""
    value: float


_ALL = (
    Metric("dtf_farm_leader_present", "Whether a coordinator leads: 1 or 0."),
    Metric("dtf_farm_tasks", "Tasks that are not done, by what they are at.", "state"),
    Metric("dtf_farm_queue_waiting_tasks", "Tasks that wait for a worker, by the class of devices that they need.", "device_class"),
    Metric("dtf_farm_queue_oldest_wait_seconds", "For how long the oldest of these has waited.", "device_class"),
    Metric("dtf_farm_queue_overtaken_tasks", "Tasks that run and came later than the oldest of these.", "device_class"),
    Metric("dtf_farm_coordinators", "Coordinators, by whether they are there.", "state"),
    Metric("dtf_farm_workers", "Workers, by what they are at.", "state"),
    Metric("dtf_farm_worker_connected", "Whether a worker has a connection: 1 or 0.", "worker"),
    Metric("dtf_farm_worker_report_age_seconds", "Age of a worker's last report of its machine.", "worker"),
    Metric("dtf_farm_worker_cpu_usage_ratio", "Use of a worker's processor, as it last said.", "worker"),
    Metric("dtf_farm_worker_memory_usage_ratio", "Use of a worker's memory, as it last said.", "worker"),
    Metric("dtf_farm_worker_disk_usage_ratio", "Use of the disk on which a worker works, as it last said.", "worker"),
    Metric("dtf_farm_worker_failed_ratio", "Share of a worker's latest runs that failed by a fault of their own.", "worker"),
    Metric("dtf_farm_etcd_members", "Members of etcd."),
    Metric("dtf_farm_etcd_answering_members", "Members of etcd that answer."),
    Metric("dtf_farm_etcd_read_seconds", "Time of a read of etcd by this coordinator: the median of the latest five."),
    Metric("dtf_farm_etcd_size_bytes", "Size of the largest member's file."),
    Metric("dtf_farm_etcd_quota_bytes", "The quota of etcd that the settings say."),
    Metric("dtf_farm_findings", "What is wrong with the farm, by how bad that is.", "level"),
)  # fmt: skip

METRICS = {metric.name: metric for metric in _ALL}
"""Name -> the metric. Alerts may be about these."""

ENDED = Metric(
    "dtf_farm_tasks_ended_total", "Tasks that have ended since this coordinator began, of the whole farm.", "outcome"
)
WAITED = Metric(
    "dtf_farm_task_wait_seconds", "From a task's submission to the start of the attempt that counts: a histogram."
)
RAN = Metric("dtf_farm_task_run_seconds", "From that start to its end: a histogram.")
LEADS = Metric("dtf_farm_coordinator_leads", "Whether this coordinator leads: 1 or 0.")
CONNECTED = Metric("dtf_farm_coordinator_workers", "Workers whose connection this coordinator holds.")
COUNTED = (ENDED, WAITED, RAN, LEADS, CONNECTED)
"""What each coordinator counts for itself, for Prometheus alone."""

_OF_MACHINES = {
    "cpu_percent": "dtf_farm_worker_cpu_usage_ratio",
    "memory_percent": "dtf_farm_worker_memory_usage_ratio",
    "disk_percent": "dtf_farm_worker_disk_usage_ratio",
}


def measure(seen: Observation, found: Iterable[Finding]) -> list[Sample]:
    """Return the samples of one moment."""
    return [one for one in _samples(seen, found) if math.isfinite(one.value)]


def _samples(seen: Observation, found: Iterable[Finding]) -> Iterator[Sample]:
    yield Sample("dtf_farm_leader_present", "", float(bool(seen.leader)))
    for state, number in seen.tasks.items():
        yield Sample("dtf_farm_tasks", state, number)
    for queue in seen.queues:
        yield Sample("dtf_farm_queue_waiting_tasks", queue.device, queue.waiting)
        yield Sample("dtf_farm_queue_oldest_wait_seconds", queue.device, queue.oldest)
        yield Sample("dtf_farm_queue_overtaken_tasks", queue.device, queue.overtaken)
    there = sum(one.there for one in seen.coordinators)
    yield Sample("dtf_farm_coordinators", "there", there)
    yield Sample("dtf_farm_coordinators", "gone", len(seen.coordinators) - there)
    states = dict.fromkeys(("online", "cordoned", "draining", "gone"), 0)
    for worker in seen.workers:
        states[_state(worker)] += 1
        yield from _worker(worker)
    for state, number in states.items():
        yield Sample("dtf_farm_workers", state, number)
    yield from _etcd(seen.etcd)
    levels = [finding.level for finding in found]
    for level in (HealthStatus.WARNING, HealthStatus.CRITICAL):
        yield Sample("dtf_farm_findings", level.value, levels.count(level))


def _state(worker: SeenWorker) -> str:
    if not worker.connected:
        return "gone"
    return "draining" if worker.draining else "cordoned" if worker.cordoned else "online"


def _worker(worker: SeenWorker) -> Iterator[Sample]:
    yield Sample("dtf_farm_worker_connected", worker.name, float(worker.connected))
    if worker.report_age is not None:
        yield Sample("dtf_farm_worker_report_age_seconds", worker.name, worker.report_age)
    for figure, metric in _OF_MACHINES.items():
        if worker.connected and (percent := worker.metrics.get(figure)) is not None:
            yield Sample(metric, worker.name, percent / 100)
    if worker.errors.runs:
        yield Sample("dtf_farm_worker_failed_ratio", worker.name, worker.errors.failed / worker.errors.runs)


def _etcd(etcd: SeenEtcd) -> Iterator[Sample]:
    if etcd.members:
        yield Sample("dtf_farm_etcd_members", "", etcd.members)
        yield Sample("dtf_farm_etcd_answering_members", "", etcd.answering)
    if etcd.latency is not None:
        yield Sample("dtf_farm_etcd_read_seconds", "", etcd.latency)
    if etcd.size is not None:
        yield Sample("dtf_farm_etcd_size_bytes", "", etcd.size)
    if etcd.quota:
        yield Sample("dtf_farm_etcd_quota_bytes", "", etcd.quota)
