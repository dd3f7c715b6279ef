"""The coordinators as the API shows them, from what the mirror shows. Pure.

| field | what it is |
|---|---|
| `term` | the leader key's create revision, which is the fence of every decision |
| `state` | `leader`, `follower`, `candidate` (nobody leads), `offline` (gone, or disabled) |
| `last_heartbeat` | when the coordinator last said in the record how its machine is, which it does every ten seconds |
| `uptime_seconds` | of a coordinator: since it started; of a leadership: since it began |
| `quorum_size` | how many members of etcd must agree |
| `cluster_health` | by `rules.health` |
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.record.mirror import Mirror
from dtf_lightning.farm.record.values import CoordinatorRecord, LeaderRecord, NodeRecord, TermRecord
from dtf_lightning.farm.rules.cluster_health import (
    SHOWN,
    NodeState,
    cluster_health,
    health_of,
    node_state,
    quorum_size,
)
from dtf_lightning.farm.rules.health import HealthStatus
from dtf_lightning.farm.server.models import when

SHORT_NAMES = {
    "cpu": "cpu_usage",
    "memory": "memory_usage",
    "disk": "disk_usage",
    "network": "network_io",
    "load": "load_average",
}
"""Name of a metric in a question -> in the answer."""


@dataclass(frozen=True)
class EtcdMembers:
    """Of the endpoints that this coordinator knows."""

    members: int = 0
    """0: not known yet."""
    answering: int = 0


@dataclass(frozen=True)
class Node:
    """A coordinator that is there, or was."""

    name: str
    there: bool
    state: NodeState
    enabled: bool
    address: str
    version: str
    told: NodeRecord | None
    health: HealthStatus
    reasons: tuple[str, ...]


def leader_of(mirror: Mirror) -> tuple[str, int]:
    """Return who leads, and the term; "" and 0 for nobody."""
    held = mirror.get(Kind.LEADER)
    if held is None or not isinstance(held.value, LeaderRecord):
        return "", 0
    return held.value.coordinator, held.create_revision


def nodes_of(mirror: Mirror) -> list[Node]:
    """Return the coordinators by name: those that are there, that have gone, and that are disabled."""
    leader, _ = leader_of(mirror)
    there = {names[0]: held.value for names, held in mirror.all(Kind.COORDINATOR).items()}
    told = {names[0]: held.value for names, held in mirror.all(Kind.NODE).items()}
    disabled = {names[0] for names in mirror.all(Kind.DISABLED)}
    nodes = []
    for name in sorted(there.keys() | told.keys() | disabled):
        record, said = there.get(name), told.get(name)
        assert record is None or isinstance(record, CoordinatorRecord)
        assert said is None or isinstance(said, NodeRecord)
        enabled = name not in disabled
        health, reasons = health_of(said.health if said else {})
        nodes.append(
            Node(
                name=name,
                there=record is not None,
                state=node_state(
                    there=record is not None, enabled=enabled, leads=name == leader, somebody_leads=leader != ""
                ),
                enabled=enabled,
                address=record.address if record else said.address if said else "",
                version=record.version if record else said.version if said else "",
                told=said,
                health=health,
                reasons=tuple(reasons),
            )
        )
    return nodes


def show_node(node: Node, term: int, now: float) -> dict[str, Any]:
    """Return a coordinator as the API shows it. `now`: seconds since the epoch."""
    told = node.told
    return {
        "node_id": node.name,
        "state": node.state.value,
        "enabled": node.enabled,
        "term": term,
        "address": node.address,
        "version": node.version,
        "host": told.host if told else "",
        "last_heartbeat": when(told.at) if told else None,
        "uptime_seconds": round(max(now - told.started, 0.0), 1) if told and node.there else None,
        "health_status": node.health.value,
    }


def show_health(node: Node, metrics: tuple[str, ...] = SHOWN) -> dict[str, Any]:
    """Return how a coordinator's machine is. `metrics`: the numbers that are wanted."""
    numbers = node.told.health if node.told else {}
    health: dict[str, Any] = {name: numbers.get(name) for name in metrics}
    health |= {"status": node.health.value, "reasons": list(node.reasons)}
    return {"node_id": node.name, "health": health, "timestamp": when(node.told.at) if node.told else None}


def show_status(mirror: Mirror, etcd: EtcdMembers, now: float) -> dict[str, Any]:
    """Return who leads, the coordinators, and how they are together."""
    leader, term = leader_of(mirror)
    nodes = nodes_of(mirror)
    health, reasons = cluster_health(
        {node.name: (node.state, node.enabled, node.health) for node in nodes},
        members=etcd.members,
        answering=etcd.answering,
    )
    return {
        "leader_id": leader,
        "current_term": term,
        "term_start_time": show_leader(mirror, now)["term_start_time"],
        "nodes": [show_node(node, term, now) for node in nodes],
        "quorum_size": quorum_size(etcd.members) if etcd.members else None,
        "etcd_members": etcd.members,
        "etcd_members_answering": etcd.answering,
        "cluster_health": health.value,
        "reasons": reasons,
        "timestamp": when(now),
    }


def terms_of(mirror: Mirror) -> dict[int, TermRecord]:
    """Return the leaderships that are remembered, by their epochs, the oldest first."""
    found = {}
    for (name,), held in mirror.all(Kind.TERM).items():
        if name.isdigit() and isinstance(held.value, TermRecord):
            found[int(name)] = held.value
    return dict(sorted(found.items()))


def show_leader(mirror: Mirror, now: float) -> dict[str, Any]:
    """Return who leads and who led before, the latest first, with why each leadership ended."""
    leader, term = leader_of(mirror)
    terms = terms_of(mirror)
    present = terms.get(term)
    history = []
    following = dict(pairwise(terms))
    for epoch, one in terms.items():
        if epoch == term:
            continue
        after = terms.get(following.get(epoch, 0))
        ended = one.ended if one.ended is not None else after.started if after else None
        reason = one.end_reason or (after.reason if after else "")
        history.append(
            {
                "leader_id": one.coordinator,
                "term": epoch,
                "start_time": when(one.started),
                "duration_seconds": round(max(ended - one.started, 0.0), 3) if ended is not None else None,
                "reason": reason or None,
            }
        )
    return {
        "leader_id": leader,
        "current_term": term,
        "term_start_time": when(present.started) if present else None,
        "uptime_seconds": round(max(now - present.started, 0.0), 1) if present else None,
        "leadership_history": history[::-1],
    }
