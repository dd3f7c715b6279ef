"""`RoundConsole` tells the user of torchrun, and the event log, what happens to a run in restart mode and why."""

from __future__ import annotations

import logging
from collections.abc import Callable

from dtf_lightning.clock import Clock
from dtf_lightning.elastic.events import GenerationFormed, NodeGoneEvent, NodeJoined
from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.elastic.rules.rounds import RoundDecision
from dtf_lightning.events.registry import Event

log = logging.getLogger(__name__)

WAITING_PATIENCE = 1.0
"""Seconds that a node waits for its place before it says why."""


class RoundConsole:
    """The lines that one node logs. Used by the agent's loop only."""

    def __init__(self, node: str, clock: Clock, report: Callable[[Event], None]) -> None:
        self._node = node
        self._clock = clock
        self._report = report
        self._waits_since: float | None = None
        self._waiting_for = ""
        self._gone: set[str] = set()

    def gone(self, node: str, cause: str) -> None:
        """Tell that a member is gone: once, however many parts of the agent notice it."""
        if node not in self._gone:
            self._gone.add(node)
            log.info("%s is gone: %s", node, cause)
            self._report(NodeGoneEvent(at=self._clock.wall(), source=self._node, node=node, cause=cause))

    def waits(self, decision: RoundDecision) -> float | None:
        """Tell why this node waits for a place; return the time (monotonic seconds) of the next call."""
        now = self._clock.monotonic()
        self._waits_since = now if self._waits_since is None else self._waits_since
        if now < self._waits_since + WAITING_PATIENCE:
            return self._waits_since + WAITING_PATIENCE
        text = decision.reason if decision.until is None else decision.reason.partition(",")[0]  # no countdown
        if text != self._waiting_for:
            self._waiting_for = text
            log.info("%s waits: %s", self._node, decision.reason)
        return None

    def entered(self, generation: Generation, group_rank: int) -> None:
        """Tell that this node has its place in a round."""
        self._waits_since, self._waiting_for = None, ""
        size = len(generation.members)
        nodes = "1 node" if size == 1 else f"{size} nodes"
        log.info("round %d: %s, group rank %d here: %s", generation.number, nodes, group_rank, generation.reason)
        if group_rank == 0:
            self._report(
                GenerationFormed(
                    at=self._clock.wall(),
                    source=self._node,
                    generation=generation.number,
                    rescale=generation.kind,
                    world_size=generation.world_size,
                    members=tuple(member.id for member in generation.members),
                    reason=generation.reason,
                    instance=generation.instance,
                )
            )

    def started(self, number: int, num_workers: int) -> None:
        """Tell that this node's workers are started for a round."""
        node = self._node
        self._report(
            NodeJoined(at=self._clock.wall(), source=node, node=node, incarnation=number, num_workers=num_workers)
        )
