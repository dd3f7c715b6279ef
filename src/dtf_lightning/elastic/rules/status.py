"""A run's nodes and what the leader waits for, as text for people (`dtf status`)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dtf_lightning.elastic.rules.directives import TimePassed
from dtf_lightning.elastic.rules.membership import decide
from dtf_lightning.elastic.rules.records import ENDED, NodeRecord
from dtf_lightning.elastic.rules.state import MembershipState, RescalePhase
from dtf_lightning.elastic.settings import ElasticSettings


class Role(Enum):
    """What a node is to its run."""

    MEMBER = "member"  # in the running generation
    LEAVER = "leaver"  # a member that wants to go
    OUT = "out"  # was a member of this generation, and has died or left
    JOINER = "joiner"  # ready, joins with the next generation
    SPARE = "spare"  # ready, but finds no place
    STARTING = "starting"  # its workers set themselves up, or it is not admitted yet
    ENDED = "ended"  # failed or left before it was in this generation


@dataclass(frozen=True, kw_only=True)
class NodeStatus:
    """One line of the list of nodes in `dtf status`."""

    node: str
    incarnation: int
    role: Role
    state: str
    """The worker state, in the record's own word; `away` while a member's key is gone."""
    ranks: range
    """The node's ranks in the current generation; empty if it has none."""
    num_workers: int
    detail: str
    """Why the node is in this state, for people; may be empty."""


def node_statuses(settings: ElasticSettings, state: MembershipState) -> list[NodeStatus]:
    """Return the members in rank order, then newcomers in their order of arrival, then nodes that have ended."""
    found = []
    for member in state.generation.members:
        record = state.record(member)
        departure = state.departures.get(member.id)
        first = state.generation.first_rank(member.id)
        role = Role.OUT if departure is not None else Role.LEAVER if state.is_leaving(member) else Role.MEMBER
        found.append(
            NodeStatus(
                node=member.node,
                incarnation=member.incarnation,
                role=role,
                state=record.state.value if record is not None else "away",
                ranks=range(first, first + member.num_workers),
                num_workers=member.num_workers,
                detail=departure.reason if departure is not None else record.detail if record is not None else "",
            )
        )
    members = {member.id for member in state.generation.members}
    num_free = settings.max_nodes - len(state.live)
    for record in state.newcomers:
        role = Role.STARTING
        if state.is_candidate(record):
            role = Role.JOINER if num_free > 0 else Role.SPARE
            num_free -= 1
        found.append(_of_record(record, role))
    newcomers = {record.member_id for record in state.newcomers}
    others = [r for r in state.nodes.values() if r.member_id not in members | newcomers]
    found.extend(_of_record(r, Role.ENDED if r.state in ENDED else Role.STARTING) for r in others)
    return found


def describe(settings: ElasticSettings, state: MembershipState, now: float, wall: float) -> list[str]:
    """Describe the run in lines: its generation, what the leader waits for, one line for each node."""
    generation = state.generation
    if generation.number:
        head = f"generation {generation.number} ({generation.kind}): {generation.reason}"
    else:
        head = "no generation yet"
    lines = [head, f"{state.phase.value}: {waiting_reason(settings, state, now, wall)}"]
    for status in node_statuses(settings, state):
        ranks = f"ranks {status.ranks.start}-{status.ranks.stop - 1}" if status.ranks else "no rank"
        detail = f" ({status.detail})" if status.detail else ""
        lines.append(f"  {status.node}#{status.incarnation} {status.role.value}, {status.state}, {ranks}{detail}")
    return lines


def waiting_reason(settings: ElasticSettings, state: MembershipState, now: float, wall: float) -> str:
    """Return the reason of the decision that the leader would take now; nothing is carried out."""
    if state.phase in (RescalePhase.FINISHED, RescalePhase.ABORTED):
        return state.directive.reason if state.directive is not None else ""
    return decide(settings, state, TimePassed(), now, wall)[1].reason


def _of_record(record: NodeRecord, role: Role) -> NodeStatus:
    return NodeStatus(
        node=record.node,
        incarnation=record.incarnation,
        role=role,
        state=record.state.value,
        ranks=range(0),
        num_workers=record.num_workers,
        detail=record.detail,
    )
