"""`LocalRound` is a node's part in the rounds: its record, its workers' round, torchelastic's open question. No I/O.

Rules that this file guards:

* a node waits for a round from the moment when torchelastic asks (its workers have stopped) until it is in one;
* its workers are stopped for one reason, once a round;
* a node whose own worker failed leaves it to torchelastic to stop the others: that counts the failure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from dtf_lightning.elastic.agent.restart.inbox import RoundAsked
from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.elastic.rules.records import NodeRecord, WorkerState


@dataclass
class LocalRound:
    """A node's part in the rounds of its run. Used under the agent's lock."""

    record: NodeRecord
    entered: Generation | None = None
    """The round for which this node's workers were started."""
    asked: RoundAsked | None = None
    """torchelastic's question for the next round, while it is open."""
    stop_reason: str = ""
    """The reason why the workers have to be started anew; empty while they need not."""

    @property
    def number(self) -> int:
        """The number of the round that was entered last; 0 before the first."""
        return self.entered.number if self.entered is not None else 0

    @property
    def visible(self) -> bool:
        """Whether the other nodes are to see this one: it waits for a round or is in one."""
        return self.asked is not None or self.number > 0

    @property
    def has_finished(self) -> bool:
        return self.number > 0 and self.record.finished == self.number

    @property
    def has_failed(self) -> bool:
        return self.number > 0 and self.record.suspect == self.number

    def is_next(self, generation: Generation) -> bool:
        """Return whether this node waits for that round and has its place in it."""
        last = self.entered
        new = last is None or generation.instance != last.instance or generation.number > last.number
        is_member = any(member.node == self.record.node for member in generation.members)
        return self.asked is not None and new and is_member

    def why_over(self, current: Generation) -> str:
        """Return why the entered round is not the latest any more; an empty text while it is."""
        assert self.entered is not None
        if current.instance not in ("", self.entered.instance):
            return "the run was begun anew without this node"
        if current.number > self.entered.number:
            return f"round {current.number} was formed without this node ({current.reason})"
        if current.number < self.entered.number:
            return "the run's keys were deleted"
        return ""

    # --- what happens ------------------------------------------------------------------------------------------------

    def ask(self, asked: RoundAsked) -> None:
        """Note that torchelastic's workers have stopped and that it asks for the next round."""
        self.asked = asked
        if self.entered is not None and not self.stop_reason and not self.record.suspect:
            # torchelastic saw it first
            self.fail("its workers failed")

    def wait_above(self, number: int) -> None:
        """Note that this node's workers have stopped and wait for a round above this number."""
        assert self.asked is not None
        self.record = replace(
            self.record,
            ready_after=number,
            store_port=self.asked.store_port,
            finished=0,
            state=WorkerState.SYNCING,
        )

    def enter(self, generation: Generation) -> RoundAsked:
        """Enter the round; return torchelastic's question, which is to be answered with it."""
        assert self.asked is not None
        asked, self.asked = self.asked, None
        self.entered, self.stop_reason = generation, ""
        self.record = replace(self.record, ready_after=None, suspect=0, detail="", state=WorkerState.ACTIVE)
        return asked

    def start(self, num_workers: int) -> None:
        """Note that torchelastic starts the workers of the entered round."""
        self.record = replace(self.record, num_workers=num_workers, generation=self.number)

    def fail(self, cause: str) -> None:
        """Note that a worker of the entered round failed by itself."""
        self.record = replace(self.record, suspect=self.number, detail=cause)

    def finish(self) -> None:
        """Note that all workers of the entered round ended well."""
        self.record = replace(self.record, finished=self.number, state=WorkerState.SYNCING)

    def leave(self, reason: str) -> None:
        """Note that this node was asked to leave; the first reason stays."""
        if not self.record.leaving:
            self.record = replace(self.record, leaving=True, detail=self.record.detail or reason)

    def take_part(self, instance: str) -> None:
        """Note in which instance of the run this node takes part."""
        self.record = replace(self.record, instance=instance)
