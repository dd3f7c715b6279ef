"""What is wrong with a farm, by what is seen of it; and what has changed since."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.rules.health import HealthStatus
from dtf_lightning.farm.rules.watching import findings as module
from dtf_lightning.farm.rules.watching.findings import ALONE, KINDS, Finding, FindingHistory, findings, worst
from dtf_lightning.farm.rules.watching.observation import (
    Observation,
    RunSeen,
    SeenCoordinator,
    SeenEtcd,
    SeenQueue,
    SeenWorker,
    WorkerErrors,
    errors_of,
)

WELL = Observation(
    leader="c",
    workers=(SeenWorker(name="w", connected=True, health=HealthStatus.HEALTHY, report_age=20.0),),
    coordinators=(SeenCoordinator(name="c", there=True, word_age=5.0),),
    etcd=SeenEtcd(members=3, answering=3, latency=0.002, size=1, quota=100),
    queues=(SeenQueue(device="cpu", waiting=3, oldest=10.0, task="t"),),
)


def etcd(**fields: object) -> Observation:
    return replace(WELL, etcd=replace(WELL.etcd, **fields))


def worker(**fields: object) -> Observation:
    return replace(WELL, workers=(replace(WELL.workers[0], **fields),))


def coordinator(**fields: object) -> Observation:
    return replace(WELL, coordinators=(replace(WELL.coordinators[0], **fields),))


def queue(**fields: object) -> Observation:
    return replace(WELL, queues=(replace(WELL.queues[0], **fields),))


def sick(**fields: object) -> Observation:
    """One worker on which much fails, beside one on which little does."""
    errors = WorkerErrors(**{"runs": 20, "failed": 10, "alone": 5} | fields)
    other = SeenWorker(name="other", connected=True, errors=WorkerErrors(runs=100, failed=2))
    return replace(WELL, workers=(replace(WELL.workers[0], errors=errors), other))


def test_a_farm_that_is_well():
    assert findings(WELL) == []
    assert worst([]) is HealthStatus.HEALTHY


@pytest.mark.parametrize(
    ("seen", "kind", "level"),
    [
        (replace(WELL, leader=""), "no_leader", "critical"),
        (etcd(answering=2), "etcd_members", "warning"),
        (etcd(answering=1), "etcd_members", "critical"),
        (etcd(latency=0.2), "etcd_latency", "warning"),
        (etcd(latency=1.0), "etcd_latency", "critical"),
        (etcd(size=50), "etcd_size", "warning"),
        (etcd(ids="they will"), "etcd_size", "warning"),
        (etcd(size=80, refusal="it is full"), "etcd_size", "critical"),
        (etcd(problem="away"), "etcd_problem", "warning"),
        (coordinator(there=False), "coordinator_gone", "warning"),
        (coordinator(word_age=61.0), "coordinator_silent", "warning"),
        (coordinator(health=HealthStatus.CRITICAL, reasons=("disk",)), "coordinator_machine", "critical"),
        (worker(connected=False), "worker_gone", "warning"),
        (worker(health=HealthStatus.WARNING, health_reason="disk"), "worker_machine", "warning"),
        (worker(report_age=181.0), "worker_silent", "warning"),
        (worker(report_age=-31.0), "worker_clock", "warning"),
        (sick(), "worker_errors", "warning"),
        (queue(lacking="it lacks gpu"), "queue_lacking", "warning"),
        (queue(oldest=1800.0), "queue_wait", "warning"),
        (queue(oldest=21_600.0), "queue_wait", "critical"),
        (queue(oldest=300.0, overtaken=20), "queue_starving", "warning"),
        (replace(WELL, results=HealthStatus.WARNING, results_reason="behind"), "results", "warning"),
        (replace(WELL, files_problem="read-only"), "files", "warning"),
    ],
)
def test_what_is_wrong(seen, kind, level):
    """Just this is found, with a reason and something to do."""
    (found,) = findings(seen)
    assert (found.kind, found.level.value) == (kind, level)
    assert found.subject
    assert found.reason
    assert not found.reason.endswith(".")
    assert found.remedy.endswith(".")


@pytest.mark.parametrize(
    "seen",
    [
        etcd(members=0, answering=0, latency=None, size=None),
        etcd(latency=0.19),
        etcd(size=49),
        coordinator(there=False, enabled=False),
        coordinator(word_age=60.0),
        worker(connected=False, draining=True),
        worker(report_age=None, health=None),
        worker(report_age=-29.0),
        sick(alone=ALONE - 1),
        sick(runs=100, failed=8),
        queue(oldest=1799.0),
        queue(oldest=400.0, overtaken=19),
        queue(oldest=299.0, overtaken=50),
        replace(WELL, workers=(replace(WELL.workers[0], errors=WorkerErrors(runs=9, failed=9, alone=9)),)),
    ],
)
def test_what_is_not_wrong(seen):
    """Just below each limit; and a worker is not sick where there is no other to compare it with."""
    assert findings(seen) == []


def test_a_code_that_fails_everywhere_makes_no_worker_sick():
    errors = WorkerErrors(runs=20, failed=10, alone=4)
    seen = replace(WELL, workers=tuple(SeenWorker(name=f"w{one}", connected=True, errors=errors) for one in range(3)))
    assert findings(seen) == []


def test_the_worst_comes_first():
    seen = replace(etcd(answering=1), leader="", workers=worker(connected=False).workers)
    assert [one.level.value for one in findings(seen)] == ["critical", "critical", "warning"]
    assert worst(findings(seen)) is HealthStatus.CRITICAL


RUNS = st.lists(
    st.builds(RunSeen, st.tuples(st.just("p"), st.sampled_from("abc")), st.sampled_from("xyz"), st.booleans())
)


@given(runs=RUNS)
def test_errors_as_a_slow_rule_has_them(runs):
    """`runs`: the latest first."""
    told = errors_of(runs)
    assert set(told) == {run.worker for run in runs}
    for worker_name, errors in told.items():
        mine = [run for run in runs if run.worker == worker_name]
        alone = 0
        for test in {run.test for run in mine}:
            here = [run.passed for run in mine if run.test == test]
            elsewhere = [run.passed for run in runs if run.test == test and run.worker != worker_name]
            alone += not any(here) and any(elsewhere)
        assert errors == WorkerErrors(runs=len(mine), failed=sum(not run.passed for run in mine), alone=alone)


LEVELS = st.dictionaries(st.sampled_from("abc"), st.sampled_from([HealthStatus.WARNING, HealthStatus.CRITICAL]))


@given(moments=st.lists(LEVELS, max_size=20))
def test_changes_lead_from_each_moment_to_the_next(moments):
    """Played from the beginning they give what was found at each time; nothing is told twice."""
    history, levels = FindingHistory(), {}
    for at, moment in enumerate(moments):
        found = [
            Finding(kind=one, level=level, subject="s", reason=f"{at}", remedy="r") for one, level in moment.items()
        ]
        history.take(found, float(at))
        for change in history.changes:
            if change.at == at:
                assert levels.get(change.kind, HealthStatus.HEALTHY) is change.before
                assert change.before is not change.after
                levels[change.kind] = change.after
        assert {one: level for one, level in levels.items() if level is not HealthStatus.HEALTHY} == moment


def test_only_so_many_changes_are_kept():
    history = FindingHistory()
    one = Finding(kind="k", level=HealthStatus.WARNING, subject="s", reason="r", remedy="m")
    for at in range(500):
        history.take([one] if at % 2 else [], float(at))
    assert (len(history.changes), history.changes[0].at) == (200, 499.0)


def test_every_kind_is_named():
    """`KINDS`, by which rules of alerts are checked, are those that the module makes and its table explains."""
    source = inspect.getsource(module)
    made = set(re.findall(r'kind="(\w+)"', source))
    assert made == set(KINDS)
    table = [
        name
        for line in module.__doc__.splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    ]
    assert sorted(table) == sorted(KINDS)
