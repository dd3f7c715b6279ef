"""`Candidacy` is an agent's part in the election of its run's leader: campaigns, terms and resignations.

Rules that this file guards:

* whoever holds the leader key leads; it lies under the agent's lease, so that it goes with it;
* an agent that leaves hands over before it stops at the boundary, if there is somebody to hand over to;
* an agent whose run is over never leads again: the key is free at once for whoever uses the run id next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dtf_lightning.clock import Clock, Deadline
from dtf_lightning.elastic.agent.live.leader import Leader
from dtf_lightning.elastic.agent.one_write import OneWrite
from dtf_lightning.elastic.agent.peers import Peers
from dtf_lightning.elastic.events import LeaderElected
from dtf_lightning.elastic.rules.directives import NodeChanged, NodeGone
from dtf_lightning.elastic.rules.records import ENDED, NodeRecord
from dtf_lightning.elastic.run.keys import RunKeys, RunView
from dtf_lightning.elastic.run.transactions import campaign, resign
from dtf_lightning.elastic.settings import AgentSettings
from dtf_lightning.etcd.session import Write, WriteOutcome
from dtf_lightning.events.registry import Event

log = logging.getLogger(__name__)

UNANSWERED_PAUSE = 0.5
"""Seconds before a campaign or resignation is tried again which etcd did not answer."""
REFUSED_PAUSE = 0.05
"""Seconds before one is tried again that was refused: another agent was first, and the watch is about to show it."""


@dataclass
class Candidacy:
    """An agent's part in the election of the leader. Used by the loop's thread only."""

    node: str
    keys: RunKeys
    settings: AgentSettings
    clock: Clock
    report: Callable[[Event], None]
    term: Leader | None = None
    deadline: Deadline = field(default_factory=Deadline)
    """The time at which `advance` must be called at the latest."""
    _write: OneWrite = field(init=False)

    def __post_init__(self) -> None:
        self._write = OneWrite(self.clock, refused=REFUSED_PAUSE, unanswered=UNANSWERED_PAUSE)

    def advance(self, view: RunView, peers: Peers, *, willing: bool) -> Iterator[Write]:
        """Campaign, lead or resign, as the run's keys demand; yield the writes that this takes."""
        self.deadline.clear()
        leader = view.leader
        mine = leader if leader is not None and leader.node == self.node else None
        if mine is None or not willing:
            self.term = None
        elif self.term is None or self.term.epoch != mine.epoch:
            log.info("%s: leads run %r (epoch %d)", self.node, self.keys.run_id, mine.epoch)
            self.report(LeaderElected(at=self.clock.wall(), source=self.node, node=self.node, epoch=mine.epoch))
            self.term = Leader(self.settings, self.keys, node=self.node, epoch=mine.epoch, clock=self.clock)
        wanted = None
        if mine is not None and not willing:
            wanted = resign(self.keys, mine.epoch)
        elif leader is None and willing and self.node in view.nodes:
            wanted = campaign(self.keys, self.node)
        if wanted is not None:
            yield from self._write.attempt(wanted)
            self.deadline.bring_forward(self._write.deadline.at)
        if self.term is not None:
            self.term.advance(view, peers.away, peers.gone)
            yield from self.next_write()
            self.deadline.bring_forward(self.term.deadline.at)

    def next_write(self) -> Iterator[Write]:
        """Return the leader's write, if one is due."""
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

    def written(self, write: Write, outcome: WriteOutcome) -> None:
        """Take in the outcome of a write, whichever part of the agent had asked for it."""
        if not self._write.written(write, outcome) and self.term is not None:
            self.term.written(write, outcome)


def others_can_lead(view: RunView, node: str) -> bool:
    """Return whether another node is listed that neither leaves nor has ended."""
    return any(r.node != node and not r.leaving and r.state not in ENDED for r in view.nodes.values())
