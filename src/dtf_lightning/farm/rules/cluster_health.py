"""How a machine is, by its numbers, and how the coordinators are together. Pure.

| number | unit | warning from | critical from |
|---|---|---|---|
| `cpu_usage` | per cent of all cores | 90 | 98 |
| `memory_usage` | per cent of the machine's | 80 | 95 |
| `disk_usage` | per cent of the disk that has the farm's folder | 85 | 95 |
| `load_average` | processes that want to run, over a minute, for each core | 2 | 8 |
| `network_io` | MB/s, both ways | never | never |

The cluster is critical while nobody leads or etcd has no quorum; it needs a look (`warning`) while a coordinator is not
healthy or has gone, or a member of etcd does not answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from dtf_lightning.farm.rules.health import HealthStatus

LIMITS: dict[str, tuple[float, float]] = {
    "cpu_usage": (90.0, 98.0),
    "memory_usage": (80.0, 95.0),
    "disk_usage": (85.0, 95.0),
    "load_per_core": (2.0, 8.0),
}
"""Number -> from which value on it is a warning, and from which critical."""

SHOWN = ("cpu_usage", "memory_usage", "disk_usage", "network_io", "load_average")
"""The numbers that are shown, in this order."""


def health_of(numbers: Mapping[str, float]) -> tuple[HealthStatus, list[str]]:
    """Return how a machine is, and one sentence for each number that is beyond a limit, the worst first."""
    found = []
    for name, (warning, critical) in LIMITS.items():
        value = numbers.get(name)
        if value is None or not value >= warning:
            continue
        health, limit = (HealthStatus.CRITICAL, critical) if value >= critical else (HealthStatus.WARNING, warning)
        found.append((health, f"{name} is {value:.1f}, which is {health.value} from {limit:g} on"))
    found.sort(key=lambda one: -list(HealthStatus).index(one[0]))
    return (found[0][0] if found else HealthStatus.HEALTHY), [text for _, text in found]


class NodeState(Enum):
    """What a coordinator is at, in the words of the requirements."""

    LEADER = "leader"
    FOLLOWER = "follower"
    CANDIDATE = "candidate"
    """It is there, and nobody leads."""
    OFFLINE = "offline"
    """It has gone, or an operator has disabled it."""


def node_state(*, there: bool, enabled: bool, leads: bool, somebody_leads: bool) -> NodeState:
    """Return what a coordinator is at."""
    if not there:
        return NodeState.OFFLINE
    if leads:
        return NodeState.LEADER
    if not enabled:
        return NodeState.OFFLINE
    return NodeState.FOLLOWER if somebody_leads else NodeState.CANDIDATE


def quorum_size(members: int) -> int:
    """Return how many members of etcd must agree: more than half."""
    return members // 2 + 1


def cluster_health(
    nodes: Mapping[str, tuple[NodeState, bool, HealthStatus]], *, members: int, answering: int
) -> tuple[HealthStatus, list[str]]:
    """Return how all coordinators are together, and one sentence for each trouble, the worst first.

    Args:
        nodes: coordinator -> its state, whether it is enabled, and how its machine is.
        members: of etcd; 0 if that is not known.
        answering: of these.
    """
    critical, warnings = [], []
    if not any(state is NodeState.LEADER for state, _, _ in nodes.values()):
        critical.append("nobody leads")
    if members and answering < quorum_size(members):
        critical.append(f"{answering} of {members} members of etcd answer, {quorum_size(members)} are needed")
    elif answering < members:
        warnings.append(f"{members - answering} of {members} members of etcd do not answer")
    for name, (state, enabled, health) in nodes.items():
        if state is NodeState.OFFLINE and enabled:
            warnings.append(f"{name} has gone")
        elif state is not NodeState.OFFLINE and health is not HealthStatus.HEALTHY:
            warnings.append(f"the machine of {name} is at {health.value}")
    health = HealthStatus.CRITICAL if critical else HealthStatus.WARNING if warnings else HealthStatus.HEALTHY
    return health, critical + warnings
