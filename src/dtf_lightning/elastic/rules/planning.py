"""The world that a planned rescale would lead to, how long it has not changed, and how both are described to people."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from dtf_lightning.elastic.rules.generation import Generation, Member
from dtf_lightning.elastic.rules.records import ENDED, NodeRecord
from dtf_lightning.elastic.rules.state import MembershipState
from dtf_lightning.elastic.settings import ElasticSettings


def joiners(settings: ElasticSettings, state: MembershipState, num_staying: int) -> tuple[Member, ...]:
    """Return the candidates that find a place beside `num_staying` members, in their order of arrival."""
    candidates = [record.member() for record in state.newcomers if state.is_candidate(record)]
    return tuple(candidates[: max(0, settings.max_nodes - num_staying)])


def planned_world(settings: ElasticSettings, state: MembershipState) -> tuple[Member, ...]:
    """Return the members of the world that a planned rescale would lead to now, in rank order."""
    leaving = {member.id for member in leavers_at_stop(settings, state)}
    staying = tuple(member for member in state.live if member.id not in leaving)
    return (*staying, *joiners(settings, state, len(staying)))


def leavers_at_stop(settings: ElasticSettings, state: MembershipState) -> tuple[Member, ...]:
    """Return the members that leave at the next stop.

    If all members want to leave while a node waits to join, the first member stays for one more generation and hands
    the state over (unless the world holds one node only: then there is no place beside it). It also stays while a node
    is on the way, until its own grace period presses.
    """
    leaving = tuple(member for member in state.live if state.is_leaving(member))
    if len(leaving) == len(state.live) and (joiners(settings, state, 1) or relief_on_the_way(settings, state)):
        return leaving[1:]
    return leaving


def relief_on_the_way(settings: ElasticSettings, state: MembershipState) -> tuple[str, ...]:
    """Return the nodes that are not ready, for which the last member that holds the run's state waits before it leaves.

    Empty where a member stays, where there is no place beside the last one, and where its grace period presses.
    """
    if not state.live or settings.max_nodes == 1 or not all(state.is_leaving(member) for member in state.live):
        return ()
    last = state.record(state.live[0])
    if last is None or last.pressed:
        return ()
    return tuple(record.node for record in state.newcomers if not state.is_candidate(record))


def stays_for_newcomers(generation: Generation, records: Iterable[NodeRecord], node: str, max_nodes: int) -> bool:
    """Tell whether a member that wants to leave, and waits for a generation, enters one more to hand its state over.

    It does if all other members are out or leave too, a newcomer is there or on the way, there is a place beside it, and
    its grace period does not press. `records` holds the latest record of every node, this one's too.
    """
    members = {member.node: member.id for member in generation.members}
    here = [record for record in records if record.state not in ENDED]
    mine = next((record for record in here if record.node == node), None)
    if mine is None or mine.pressed or max_nodes == 1:
        return False
    others = [record for record in here if record.node != node and not record.leaving]
    return bool(others) and not any(members.get(record.node) == record.member_id for record in others)


def track(state: MembershipState, world: Sequence[Member], num_free: int, wanted: bool, now: float) -> MembershipState:
    """Note the world that would be formed now, so that it is known since when it has not changed."""
    on_the_way = [record.member_id for record in state.newcomers if not state.is_candidate(record)]
    members = frozenset(member.id for member in world)
    waiting = frozenset(on_the_way if num_free > 0 else ())
    plan = state.plan
    if (members, waiting) != (plan.members, plan.on_the_way):
        plan = replace(plan, members=members, on_the_way=waiting, changed_at=now)
    if not wanted:
        plan = replace(plan, wanted_since=None)
    elif plan.wanted_since is None:
        plan = replace(plan, wanted_since=now)
    return replace(state, plan=plan)


def deadline_of(settings: ElasticSettings, state: MembershipState, window: float) -> float:
    """Return when the plan is carried out if nothing changes any more, in monotonic seconds."""
    wanted_since = state.plan.wanted_since if state.plan.wanted_since is not None else state.plan.changed_at
    return min(max(state.plan.changed_at, wanted_since) + window, wanted_since + settings.max_wait)


def names(members: Sequence[Member]) -> str:
    """Return the names of the members' nodes, for people."""
    return ", ".join(member.node for member in members)


def describe_change(state: MembershipState, planned: Sequence[Member]) -> str:
    """Describe, for people, what a planned rescale would change."""
    ids = {member.id for member in planned}
    coming = [member for member in planned if member.id not in {m.id for m in state.generation.members}]
    going = [member for member in state.live if member.id not in ids]
    words = []
    if coming:
        words.append(f"{names(coming)} joins" if len(coming) == 1 else f"{names(coming)} join")
    if going:
        words.append(f"{names(going)} leaves" if len(going) == 1 else f"{names(going)} leave")
    return ", ".join(words) or "no change any more"


def describe_waiting(state: MembershipState, planned: Sequence[Member]) -> str:
    """Describe, for people, the newcomers that have no place in the planned world, and why."""
    ids = {member.id for member in planned}
    words = []
    for record in state.newcomers:
        if record.member_id in ids:
            continue
        words.append(f"{record.node} {'waits as a spare' if state.is_candidate(record) else 'is not ready'}")
    return ", ".join(words)


def waiting_for(state: MembershipState, before: str = ", waiting for ", otherwise: str = "") -> str:
    """Name, for people, the nodes that have registered and are not ready."""
    unready = [record.node for record in state.newcomers if not state.is_candidate(record)]
    who = ", ".join(unready) or otherwise
    return f"{before}{who}" if who else ""
