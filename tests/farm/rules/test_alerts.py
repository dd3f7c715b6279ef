"""When an alert fires and is over, as a slow rule has it that looks at everything that was ever seen."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.rules.health import HealthStatus
from dtf_lightning.farm.rules.watching.alerts import AlertKey, AlertRule, AlertWatch, holding
from dtf_lightning.farm.rules.watching.findings import Finding
from dtf_lightning.farm.rules.watching.measures import Sample

METRIC = "dtf_farm_queue_oldest_wait_seconds"


def finding(kind="etcd_size", subject="etcd", level=HealthStatus.WARNING) -> Finding:
    return Finding(kind=kind, level=level, subject=subject, reason=f"of {kind}", remedy="x.")


@pytest.mark.parametrize(
    ("rule", "subjects"),
    [
        ({"metric": METRIC, "above": 5.0}, {"gpu"}),
        ({"metric": METRIC, "below": 5.0}, {"cpu"}),
        ({"metric": METRIC, "above": 9.0}, set()),
        ({"metric": METRIC, "above": 0.0, "subject": "g*"}, {"gpu"}),
        ({"metric": "dtf_farm_etcd_members", "below": 3.0}, set()),
        ({"finding": "etcd_size"}, {"etcd"}),
        ({"finding": "etcd_size", "level": HealthStatus.CRITICAL}, set()),
        ({"finding": "worker_errors", "level": HealthStatus.CRITICAL}, {"w1"}),
        ({"finding": "*"}, {"etcd: etcd_size", "w1: worker_errors", "w1: worker_clock"}),
        ({"finding": "*", "subject": "w*"}, {"w1: worker_errors", "w1: worker_clock"}),
    ],
)
def test_of_what_a_rule_holds(rule, subjects):
    """At a limit it does not hold; of what is not known neither."""
    samples = [Sample(METRIC, "cpu", 1.0), Sample(METRIC, "gpu", 9.0)]
    found = [finding(), finding("worker_errors", "w1", HealthStatus.CRITICAL), finding("worker_clock", "w1")]
    assert {subject for subject, _ in holding(AlertRule(name="r", **rule), samples, found)} == subjects


def test_the_reason_has_the_numbers():
    ((_, reason),) = holding(AlertRule(name="r", metric=METRIC, above=5.0), [Sample(METRIC, "gpu", 7.5)], [])
    assert reason == "queue_oldest_wait_seconds is 7.5, above 5"


def fires(seen: list[tuple[float, bool]], lasting: float, calm: float) -> bool:
    """The slow rule: there was a stretch without a break that lasted, and since it held last less than `calm` has passed, at
    every look since."""
    fired = False
    for place, (now, holds) in enumerate(seen):
        stretch = now
        for at, held in reversed(seen[: place + 1]):
            if not held:
                break
            stretch = at
        if holds and now - stretch >= lasting:
            fired = True
        last = max((at for at, held in seen[: place + 1] if held), default=None)
        if not holds and (last is None or now - last >= calm):
            fired = False
    return fired


LOOKS = st.lists(st.tuples(st.floats(0.5, 40.0), st.booleans()), min_size=1, max_size=30)


@given(looks=LOOKS, lasting=st.sampled_from([0.0, 10.0, 60.0]), calm=st.sampled_from([0.0, 15.0, 60.0]))
def test_as_the_slow_rule(looks, lasting, calm):
    watch = AlertWatch([AlertRule(name="r", metric=METRIC, above=0.0, lasting=lasting)], calm, 0.0)
    now, seen = 0.0, []
    for pause, holds in looks:
        now += pause
        seen.append((now, holds))
        watch.take([Sample(METRIC, "gpu", float(holds))], [], now)
        assert any(alert.firing for alert in watch.alerts()) is fires(seen, lasting, calm)


def test_who_has_just_begun_to_look_ends_nothing():
    """An incident of another leader's: it is over when it has not held here for `calm`; and at once if its rule is gone."""
    rule = AlertRule(name="r", finding="etcd_size", lasting=100.0)
    watch = AlertWatch([rule], 60.0, 1000.0)
    key, gone = AlertKey("r", "etcd"), AlertKey("forgotten", "etcd")
    watch.take([], [], 1030.0, {key})
    assert (watch.is_over(key, 1030.0), watch.is_over(gone, 1030.0)) == (False, True)
    watch.take([], [finding()], 1040.0, {key})
    watch.take([], [], 1070.0, {key})
    assert not watch.is_over(key, 1070.0), "it held 30 s ago, though not for as long as the rule says"
    watch.take([], [], 1100.0, {key})
    assert watch.is_over(key, 1100.0)
