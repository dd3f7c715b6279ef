"""Restart mode: decides when a round of workers has to stop, and which nodes form the next one.

All are pure functions of the nodes' records. A round is a `Generation` whose workers torchelastic starts anew. Rules
that this file guards:

* every agent that looks at the same records comes to the same result; there is no leader: the agent that is first in
  the next round publishes it (a transaction lets only one win);
* a round is formed only of nodes whose workers have stopped, and not before every living member's workers have;
* survivors keep their order, joiners come behind them in their order of arrival;
* members that finished are neither waited for nor taken into the next round: what they trained is done;
* rounds that fail one after the other end the run, which would otherwise go on for ever.

A record says it all: `ready_after` is the round above which the node waits for one, `suspect` the round in which its
workers failed, `finished` the round that they completed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from dtf_lightning.elastic.rules.change import kind_of_change
from dtf_lightning.elastic.rules.generation import Generation, Member
from dtf_lightning.elastic.rules.records import ENDED, NodeRecord
from dtf_lightning.elastic.settings import ElasticSettings


class RoundStep(Enum):
    WAIT = "wait"
    FORM = "form"
    ABORT = "abort"


@dataclass(frozen=True, kw_only=True)
class RoundDecision:
    """What happens about the next round, and why, with the counts."""

    step: RoundStep
    reason: str
    members: tuple[NodeRecord, ...] = ()
    """FORM: the round's members in rank order; the first one's agent hosts the round's store."""
    kind: str = ""
    num_consecutive_failures: int = 0
    until: float | None = None
    """WAIT: when the answer may change without a new record, in monotonic seconds."""
    nobody_trains: bool = False
    """WAIT: whether no round goes on, so that all nodes wait."""
    paused: bool = False
    """WAIT: whether fewer than `min_nodes` nodes wait, so that nobody trains until more come."""


@dataclass(frozen=True, kw_only=True)
class RoundView:
    """What an agent in restart mode knows of its run."""

    current: Generation
    """The latest round; its number is 0 before the first."""
    records: tuple[NodeRecord, ...]
    """The records of all nodes that live, in any order."""
    failed: Mapping[str, str]
    """The members of the latest round that vanished without having left, each with the reason."""
    completed: frozenset[str]
    """The members of the latest round that are gone because they had finished it."""

    @property
    def living(self) -> dict[str, NodeRecord]:
        return {record.node: record for record in self.records if record.state not in ENDED}

    def is_ready(self, record: NodeRecord) -> bool:
        waits = record.ready_after is not None and record.ready_after >= self.current.number
        return waits and not record.leaving and record.state not in ENDED

    def has_finished(self, node: str) -> bool:
        record = self.living.get(node)
        number = self.current.number
        return node in self.completed or (record is not None and number > 0 and record.finished == number)

    @property
    def any_finished(self) -> bool:
        return any(self.has_finished(member.node) for member in self.current.members)


def why_stop(view: RoundView) -> str:
    """Return why the workers of the latest round have to stop at once; an empty text while they need not."""
    living = view.living
    for member in view.current.members:
        record = living.get(member.node)
        if view.has_finished(member.node):
            continue
        if record is None:
            return f"{member.node} is gone: {view.failed.get(member.node, 'it left')}"
        if record.leaving:
            return f"{member.node} leaves: {record.detail or 'it was asked to'}"
        if record.suspect == view.current.number:
            return f"a worker failed on {member.node}: {record.detail}"
        if view.is_ready(record):
            return f"{member.node} starts its workers anew"
    return ""


def joiners(settings: ElasticSettings, view: RoundView) -> tuple[str, ...]:
    """Return the nodes for which the latest round may be stopped, in their order of arrival."""
    members = {member.node for member in view.current.members}
    num_free = settings.max_nodes - len(members)
    if num_free <= 0 or view.any_finished:
        return ()
    waiting = sorted((r for r in view.records if view.is_ready(r) and r.node not in members), key=_arrival)
    return tuple(record.node for record in waiting[:num_free])


@dataclass
class Arrivals:
    """The nodes that wait to join, and since when no other has come, in monotonic seconds."""

    nodes: tuple[str, ...] = ()
    first_at: float = 0.0
    quiet_since: float = 0.0

    def note(self, nodes: tuple[str, ...], now: float) -> None:
        """Note that these nodes wait to join at time `now` (monotonic seconds)."""
        if nodes != self.nodes:
            self.first_at = self.first_at if self.nodes else now
            self.nodes, self.quiet_since = nodes, now


def why_let_in(settings: ElasticSettings, view: RoundView, arrivals: Arrivals, now: float) -> tuple[str, float | None]:
    """Return why the latest round has to stop for joiners, or an empty text and when to ask again.

    Times are in monotonic seconds.
    """
    arrivals.note(joiners(settings, view), now)
    if not arrivals.nodes:
        return "", None
    full = len(arrivals.nodes) + len(view.current.members) >= settings.max_nodes
    due = min(arrivals.quiet_since + settings.stability_window, arrivals.first_at + settings.max_wait)
    return (f"{', '.join(arrivals.nodes)} joins", None) if full or now >= due else ("", due)


def plan_round(
    settings: ElasticSettings, view: RoundView, *, quiet_since: float, now: float, wall: float
) -> RoundDecision:
    """Decide what becomes of the nodes that wait for a round.

    `quiet_since` is when the last of them came, in monotonic seconds as `now`; `wall` is in seconds since the epoch.
    """
    living, current = view.living, view.current
    members = [member.node for member in current.members]
    ready = {record.node: record for record in view.records if view.is_ready(record)}
    busy = [
        node
        for node in members
        if node in living and node not in ready and not living[node].leaving and not view.has_finished(node)
    ]
    if busy and not ready.keys() & set(members):
        return _wait(f"round {current.number} trains with {_count(members, 'node')}; {_place(settings, members)}")
    if busy:
        stopped = len([node for node in members if node in ready])
        return _wait(f"{stopped} of {_count(members, 'node')} have stopped, waits for {', '.join(busy)}")
    order = [ready[node] for node in members if node in ready]
    newcomers = sorted((record for node, record in ready.items() if node not in members), key=_arrival)
    survivors, chosen = len(order), (*order, *newcomers)[: settings.max_nodes]
    if len(chosen) < settings.min_nodes:
        reason = f"{len(chosen)} of at least {_count(settings.min_nodes, 'node')} are here"
        return replace(_wait(reason), nobody_trains=True, paused=True)
    due = quiet_since + (0.0 if survivors or len(chosen) == settings.max_nodes else settings.initial_window)
    if now < due:
        wait = _wait(f"{_count(chosen, 'node')} here, more may come for {due - now:.1f} s", until=due)
        return replace(wait, nobody_trains=True)
    return _form(settings, view, chosen, wall)


def _form(settings: ElasticSettings, view: RoundView, chosen: Sequence[NodeRecord], wall: float) -> RoundDecision:
    current, nodes = view.current, {record.node for record in chosen}
    broken = dict(view.failed)
    broken.update({r.node: r.detail for r in view.records if current.number and r.suspect == current.number})
    before = {member.node for member in current.members}
    joined, left = nodes - before, before - nodes - broken.keys()
    parts = []
    if joined:
        parts.append(f"{_count(joined, 'node')} joined" if before else f"{_count(joined, 'node')} started")
    if left:
        parts.append(f"{_count(left, 'node')} left")
    parts += [f"{node}: {cause}" for node, cause in sorted(broken.items())]
    change = kind_of_change(first=not before, joined=bool(joined), left=bool(left), failed=bool(broken))
    lived = wall - current.formed_at
    recent = current.num_consecutive_failures if lived < settings.failure_window else 0
    num_failures = recent + (1 if broken else 0)
    reason = "; ".join(parts) or "the workers start anew"
    if num_failures > settings.max_consecutive_failures:
        return RoundDecision(
            step=RoundStep.ABORT,
            reason=f"{num_failures} failures in a row, none of whose rounds lived for {settings.failure_window:g} s "
            f"(max_consecutive_failures={settings.max_consecutive_failures}); the last: {reason}. The worker's own "
            "error stands in the output above",
        )
    return RoundDecision(
        step=RoundStep.FORM,
        reason=reason,
        members=tuple(chosen),
        kind=change.value,
        num_consecutive_failures=num_failures,
    )


def next_round(current: Generation, decision: RoundDecision, *, instance: str, wall: float) -> Generation:
    """Return the generation that a FORM decision describes."""
    host = decision.members[0]
    return Generation(
        number=current.number + 1,
        members=tuple(
            Member(node=record.node, incarnation=record.incarnation, num_workers=record.num_workers, host=record.host)
            for record in decision.members
        ),
        reason=decision.reason,
        kind=decision.kind,
        instance=instance,
        store_host=host.host,
        store_port=host.store_port,
        formed_at=wall,
        num_consecutive_failures=decision.num_consecutive_failures,
    )


def _arrival(record: NodeRecord) -> tuple[int, str]:
    return record.order, record.node


def _wait(reason: str, until: float | None = None) -> RoundDecision:
    return RoundDecision(step=RoundStep.WAIT, reason=reason, until=until)


def _place(settings: ElasticSettings, members: Sequence[str]) -> str:
    if len(members) >= settings.max_nodes:
        return f"this node is a spare (at most {_count(settings.max_nodes, 'node')})"
    return "this node joins with the next round"


def _count(things: int | Iterable[object], noun: str) -> str:
    number = things if isinstance(things, int) else len(list(things))
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
