"""Who leads: this agent's campaigns, terms and resignations.

Rules that this file guards:

* whoever holds the leader key leads; it lies under the agent's lease, so that it goes with it;
* an agent that leaves hands over before it stops at the boundary, if there is somebody to hand over to;
* an agent whose run is over never leads again: the key is free at once for whoever uses the run id next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dtf_lightning.clock import Clock
from dtf_lightning.elastic.agent.inbox import OWN_LEASE, Outcome, Write
from dtf_lightning.elastic.agent.live.leader import Leader
from dtf_lightning.elastic.agent.peers import Peers
from dtf_lightning.elastic.events import LeaderElected
from dtf_lightning.elastic.rules.directives import NodeChanged, NodeGone
from dtf_lightning.elastic.rules.records import ENDED, NodeRecord
from dtf_lightning.elastic.run.keys import RunKeys, RunView, encode
from dtf_lightning.elastic.settings import AgentSettings
from dtf_lightning.etcd.store import Compare, Delete, Put
from dtf_lightning.events.registry import Event

log = logging.getLogger(__name__)

UNANSWERED_PAUSE = 0.5
"""Seconds before a campaign or resignation is tried again that etcd did not answer."""
REFUSED_PAUSE = 0.05
"""The same for one that was refused: somebody was first, and the watch is about to say who."""


@dataclass
class Leadership:
    """This agent's part in the election. Used by the loop's thread only."""

    node: str
    keys: RunKeys
    settings: AgentSettings
    clock: Clock
    report: Callable[[Event], None]
    term: Leader | None = None
    until: float | None = None
    """When `advance` wants to be called at the latest: monotonic seconds."""
    _in_flight: Write | None = None
    _retry_at: float = 0.0

    def advance(self, view: RunView, peers: Peers, *, willing: bool) -> Iterator[Write]:
        """Campaign, lead or resign, as the keys say; yields what is to be written."""
        self.until = None
        leader = view.leader
        mine = leader if leader is not None and leader.node == self.node else None
        if mine is None or not willing:
            self.term = None
        elif self.term is None or self.term.epoch != mine.epoch:
            log.info("%s: leads run %r (epoch %d)", self.node, self.keys.run_id, mine.epoch)
            self.report(LeaderElected(at=self.clock.wall(), source=self.node, node=self.node, epoch=mine.epoch))
            self.term = Leader(self.settings, self.keys, node=self.node, epoch=mine.epoch, clock=self.clock)
        if mine is not None and not willing:
            yield from self._try(self._resignation(mine.epoch))
        elif leader is None and willing and self.node in view.nodes:
            yield from self._try(self._campaign())
        if self.term is not None:
            self.term.advance(view, peers.away, peers.gone)
            yield from self.next_write()
            self._wake_at(self.term.until)

    def next_write(self) -> Iterator[Write]:
        """The leader's write, if one is due."""
        if self.term is not None:
            write = self.term.next_write()
            if write is not None:
                yield write
            for event in self.term.happened:
                self.report(event)
            self.term.happened.clear()

    def node_changed(self, record: NodeRecord) -> None:
        if self.term is not None:
            self.term.feed(NodeChanged(record))

    def node_gone(self, node: str, cause: str) -> None:
        if self.term is not None:
            self.term.feed(NodeGone(node, cause))

    def written(self, write: Write, outcome: Outcome) -> None:
        """How a write went, whoever wanted it."""
        if write is self._in_flight:
            self._in_flight = None
            pause = {Outcome.APPLIED: 0.0, Outcome.REFUSED: REFUSED_PAUSE, Outcome.UNKNOWN: UNANSWERED_PAUSE}[outcome]
            self._retry_at = self.clock.monotonic() + pause
        elif self.term is not None:
            self.term.written(write, outcome)

    def _campaign(self) -> Write:
        # An agent that nobody can see must not lead: both keys go with the same lease.
        key = self.keys.node(self.node)
        return Write(
            label="campaign",
            compares=(Compare(self.keys.leader, "create", "=", 0), Compare(key, "create", "!=", 0)),
            puts=(Put(self.keys.leader, encode({"node": self.node}), lease=OWN_LEASE),),
        )

    def _resignation(self, epoch: int) -> Write:
        return Write(
            label="resign",
            compares=(Compare(self.keys.leader, "create", "=", epoch),),
            puts=(Delete(self.keys.leader),),
        )

    def _try(self, write: Write) -> Iterator[Write]:
        if self._in_flight is not None:
            return  # its `WriteDone` wakes the loop
        if self.clock.monotonic() < self._retry_at:
            self._wake_at(self._retry_at)
            return
        self._in_flight = write
        yield write

    def _wake_at(self, at: float | None) -> None:
        if at is not None:
            self.until = at if self.until is None else min(self.until, at)


def others_can_lead(view: RunView, node: str) -> bool:
    """Somebody else is listed who neither leaves nor has ended."""
    return any(r.node != node and not r.leaving and r.state not in ENDED for r in view.nodes.values())
