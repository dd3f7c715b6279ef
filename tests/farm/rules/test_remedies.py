"""What a farm does by itself: whom it cordons, and whom it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.rules.health import HealthStatus
from dtf_lightning.farm.rules.watching.findings import Finding
from dtf_lightning.farm.rules.watching.observation import SeenWorker
from dtf_lightning.farm.rules.watching.remedies import COOL_DOWN, LASTED, SHARE, cordon_next

NOW = 1_800_000_000.0
SICK = SeenWorker(name="sick", connected=True, device="gpu")
OTHER = replace(SICK, name="other")


def finding(worker: str, kind: str = "worker_errors") -> Finding:
    return Finding(kind=kind, level=HealthStatus.WARNING, subject=worker, reason=f"of {worker}", remedy="x.")


def cordoned(workers, *, kind="worker_errors", lasted=LASTED):
    told = cordon_next([finding("sick", kind)], workers, {(kind, "sick"): NOW - lasted}, NOW)
    return told and told.worker


def test_a_sick_worker_is_cordoned_with_the_reason():
    told = cordon_next([finding("sick")], (SICK, OTHER), {("worker_errors", "sick"): NOW - LASTED}, NOW)
    assert (told.worker, told.reason) == ("sick", "of sick")


@pytest.mark.parametrize(
    ("workers", "fields"),
    [
        ((SICK, OTHER), {"kind": "worker_machine"}),
        ((SICK, OTHER), {"lasted": LASTED - 1}),
        ((replace(SICK, connected=False), OTHER), {}),
        ((replace(SICK, draining=True), OTHER), {}),
        ((replace(SICK, cordoned=True), OTHER), {}),
        ((replace(SICK, cordoned_at=NOW - COOL_DOWN + 1), OTHER), {}),
        ((SICK,), {}),
        ((SICK, replace(OTHER, device="cpu")), {}),
        ((SICK, replace(OTHER, cordoned=True)), {}),
        ((SICK, OTHER, replace(OTHER, name="third", cordoned=True, cordoned_for="it failed")), {}),
        ((OTHER,), {}),
    ],
)
def test_who_is_left_alone(workers, fields):
    assert cordoned(workers, **fields) is None


def test_after_the_cool_down_it_may_be_cordoned_again():
    assert cordoned((replace(SICK, cordoned_at=NOW - COOL_DOWN), OTHER)) == "sick"


@given(
    devices=st.lists(st.sampled_from(["cpu", "gpu"]), min_size=1, max_size=12),
    sick=st.sets(st.integers(0, 11)),
    looks=st.integers(1, 15),
)
def test_the_limit_holds_whatever_is_found(devices, sick, looks):
    """Look after look, until nothing more is done: a quarter at most, and each class of devices keeps a worker."""
    workers = [SeenWorker(name=f"w{place}", connected=True, device=device) for place, device in enumerate(devices)]
    found = [finding(f"w{place}") for place in sick]
    since = {(one.kind, one.subject): NOW - LASTED for one in found}
    for _ in range(looks):
        told = cordon_next(found, workers, since, NOW)
        if told is None:
            break
        assert told.worker in {one.subject for one in found}
        workers = [
            replace(one, cordoned=True, cordoned_for=told.reason, cordoned_at=NOW) if one.name == told.worker else one
            for one in workers
        ]
    assert sum(one.cordoned for one in workers) <= max(int(SHARE * len(workers)), 1)
    assert {one.device for one in workers if not one.cordoned} == set(devices)
