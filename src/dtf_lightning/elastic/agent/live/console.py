"""`Console` tells the user of torchrun what happens to the run and why: one line per change, on every node."""

from __future__ import annotations

import logging
import re

from dtf_lightning.clock import Clock, Deadline
from dtf_lightning.elastic.agent.live.worker_group import WorkerGroup
from dtf_lightning.elastic.rules.directives import DirectiveKind
from dtf_lightning.elastic.run.keys import RunView

log = logging.getLogger(__name__)

WAITING_PATIENCE = 1.0
"""Seconds that a node waits for its place before it says why."""
_COUNTDOWN = re.compile(r"\d+\.\d s")


class Console:
    """The lines that one node logs: it compares the keys with what it logged last. Used by the loop's thread only."""

    def __init__(self, node: str, clock: Clock) -> None:
        self.deadline = Deadline()
        """The time at which `tell` must be called at the latest."""
        self._node = node
        self._clock = clock
        self._waits_since: float | None = None
        self._generation = 0
        self._directive: tuple[DirectiveKind, int, str] | None = None
        self._waiting_for = ""

    def tell(self, view: RunView, workers: WorkerGroup) -> None:
        """Log what has changed since the last call."""
        generation, directive = view.generation, view.directive
        me = workers.member_id
        is_member = generation is not None and any(member.id == me for member in generation.members)
        number = generation.number if generation is not None else 0
        if directive is not None and directive.target > number:
            told = (directive.kind, directive.target, directive.reason)
            if told != self._directive and directive.kind is not DirectiveKind.STOP:
                log.info("%s: %s", directive.kind.value, directive.reason)
            self._directive = told
        if generation is not None and number != self._generation:
            place = f"; this node has ranks from {generation.first_rank(me)} on" if is_member else ""
            log.info("generation %d: %s%s", number, generation.reason, place)
        self._generation = number
        paused = view.status is not None and view.status.paused
        self._tell_why_it_waits(view, waits=workers.incarnation.waits and (not is_member or paused))

    def _tell_why_it_waits(self, view: RunView, *, waits: bool) -> None:
        self.deadline.clear()
        if not waits:
            self._waits_since, self._waiting_for = None, ""
            return
        now = self._clock.monotonic()
        self._waits_since = now if self._waits_since is None else self._waits_since
        if now < self._waits_since + WAITING_PATIENCE:
            self.deadline.bring_forward(self._waits_since + WAITING_PATIENCE)
            return
        reason = view.status.reason if view.status is not None else "no leader yet"
        text = _COUNTDOWN.sub("a moment", reason)  # counting down is no change
        if text != self._waiting_for:
            self._waiting_for = text
            log.info("%s waits: %s", self._node, reason)
