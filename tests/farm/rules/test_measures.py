"""Metrics: their names, and what has a sample when."""

from __future__ import annotations

import math
import re

from dtf_lightning.farm.rules.health import HealthStatus
from dtf_lightning.farm.rules.watching.findings import Finding
from dtf_lightning.farm.rules.watching.measures import COUNTED, METRICS, Sample, measure
from dtf_lightning.farm.rules.watching.observation import (
    Observation,
    SeenCoordinator,
    SeenEtcd,
    SeenQueue,
    SeenWorker,
    WorkerErrors,
)

FULL = Observation(
    leader="c",
    workers=(
        SeenWorker(
            name="w1",
            connected=True,
            report_age=5.0,
            errors=WorkerErrors(runs=4, failed=1),
            metrics={"cpu_percent": 50.0, "memory_percent": 25.0, "disk_percent": 75.0, "load": 3.0},
        ),
        SeenWorker(name="w2", connected=True, cordoned=True),
        SeenWorker(name="w3", connected=True, draining=True, cordoned=True),
        SeenWorker(name="w4", connected=False, metrics={"cpu_percent": 99.0}),
    ),
    coordinators=(SeenCoordinator(name="c", there=True), SeenCoordinator(name="d", there=False)),
    etcd=SeenEtcd(members=3, answering=2, latency=0.01, size=7, quota=100),
    queues=(SeenQueue(device="gpu", waiting=3, oldest=60.0, task="t", overtaken=1),),
    tasks={"pending": 3, "running": 0},
)
FINDING = Finding(kind="x", level=HealthStatus.CRITICAL, subject="y", reason="z", remedy="")


def test_each_has_its_value():
    told = {(one.metric, one.subject): one.value for one in measure(FULL, [FINDING])}
    assert {metric for metric, _ in told} == METRICS.keys()
    assert {told["dtf_farm_workers", state] for state in ("online", "cordoned", "draining", "gone")} == {1}
    assert told["dtf_farm_worker_cpu_usage_ratio", "w1"] == 0.5
    assert ("dtf_farm_worker_cpu_usage_ratio", "w4") not in told, "who has gone says nothing"
    assert told["dtf_farm_worker_failed_ratio", "w1"] == 0.25
    assert (told["dtf_farm_findings", "critical"], told["dtf_farm_findings", "warning"]) == (1, 0)
    assert (told["dtf_farm_tasks", "pending"], told["dtf_farm_tasks", "running"]) == (3, 0)
    assert (told["dtf_farm_coordinators", "there"], told["dtf_farm_coordinators", "gone"]) == (1, 1)


def test_what_is_not_known_has_no_sample():
    """A farm of which little is seen, and a figure that is no number."""
    told = {one.metric for one in measure(Observation(), [])}
    assert told == {"dtf_farm_leader_present", "dtf_farm_coordinators", "dtf_farm_workers", "dtf_farm_findings"}
    odd = Observation(etcd=SeenEtcd(latency=math.nan))
    assert Sample("dtf_farm_leader_present", "", 0.0) in measure(odd, [])
    assert not any(math.isnan(one.value) for one in measure(odd, []))


def test_names():
    """By Prometheus' conventions: the product first, base units last, `_total` for what only grows, no label in a name."""
    for metric in (*METRICS.values(), *COUNTED):
        assert re.fullmatch(r"dtf_farm_[a-z]+(_[a-z]+)*", metric.name), metric
        assert not re.search(r"_(ms|milliseconds|minutes|percent|mb|kb|count|sum|bucket)$", metric.name), metric
        assert metric.help.endswith("."), metric
    for sample in measure(FULL, [FINDING]):
        assert bool(sample.subject) is bool(METRICS[sample.metric].label), sample
