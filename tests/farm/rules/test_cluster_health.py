"""When a machine and a cluster are well: by stated limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.rules.cluster_health import (
    LIMITS,
    NodeState,
    cluster_health,
    health_of,
    node_state,
    quorum_size,
)
from dtf_lightning.farm.rules.health import HealthStatus


@given(st.dictionaries(st.sampled_from([*LIMITS, "network_io", "other"]), st.floats(0, 200) | st.just(float("nan"))))
def test_the_worst_number_decides(numbers):
    worst = HealthStatus.HEALTHY
    for name, (warning, critical) in LIMITS.items():
        if name in numbers and numbers[name] >= critical:
            worst = HealthStatus.CRITICAL
        elif name in numbers and numbers[name] >= warning and worst is HealthStatus.HEALTHY:
            worst = HealthStatus.WARNING
    health, reasons = health_of(numbers)
    assert health is worst
    assert bool(reasons) == (worst is not HealthStatus.HEALTHY)
    assert not reasons or f"which is {worst.value}" in reasons[0]


def test_the_texts_example():
    assert health_of({"cpu_usage": 45.2, "memory_usage": 62.8, "disk_usage": 78.1})[0] is HealthStatus.HEALTHY
    health, reasons = health_of({"cpu_usage": 72.1, "memory_usage": 83.5, "disk_usage": 62.3})
    assert (health, reasons) == (HealthStatus.WARNING, ["memory_usage is 83.5, which is warning from 80 on"])


@pytest.mark.parametrize(
    ("there", "enabled", "leads", "somebody", "state"),
    [
        (True, True, True, True, NodeState.LEADER),
        (True, True, False, True, NodeState.FOLLOWER),
        (True, True, False, False, NodeState.CANDIDATE),
        (True, False, False, True, NodeState.OFFLINE),
        (True, False, True, True, NodeState.LEADER),  # until it has handed over
        (False, True, False, True, NodeState.OFFLINE),
    ],
)
def test_states(there, enabled, leads, somebody, state):
    assert node_state(there=there, enabled=enabled, leads=leads, somebody_leads=somebody) is state


@given(members=st.integers(1, 9))
def test_two_quorums_have_a_member_in_common(members):
    assert 2 * quorum_size(members) > members >= quorum_size(members)


@pytest.mark.parametrize(
    ("nodes", "members", "answering", "health", "reasons"),
    [
        ({"a": (NodeState.LEADER, True, HealthStatus.HEALTHY)}, 1, 1, HealthStatus.HEALTHY, []),
        ({"a": (NodeState.LEADER, True, HealthStatus.HEALTHY)}, 0, 0, HealthStatus.HEALTHY, []),
        ({"a": (NodeState.CANDIDATE, True, HealthStatus.HEALTHY)}, 1, 1, HealthStatus.CRITICAL, ["nobody leads"]),
        ({}, 1, 1, HealthStatus.CRITICAL, ["nobody leads"]),
        (
            {"a": (NodeState.LEADER, True, HealthStatus.HEALTHY)}, 3, 1, HealthStatus.CRITICAL,
            ["1 of 3 members of etcd answer, 2 are needed"],
        ),
        (
            {"a": (NodeState.LEADER, True, HealthStatus.CRITICAL), "b": (NodeState.OFFLINE, True, HealthStatus.HEALTHY)}, 3, 2,
            HealthStatus.WARNING, ["1 of 3 members of etcd do not answer", "the machine of a is at critical", "b has gone"],
        ),
        (
            {"a": (NodeState.LEADER, True, HealthStatus.HEALTHY), "b": (NodeState.OFFLINE, False, HealthStatus.HEALTHY)}, 1, 1,
            HealthStatus.HEALTHY, [],
        ),
    ],
)  # fmt: skip
def test_together(nodes, members, answering, health, reasons):
    assert cluster_health(nodes, members=members, answering=answering) == (health, reasons)
