"""`Admission` decides whether a node may join a run: its script, settings and model must be those of the run.

The first node that is ready writes the run's fingerprint, every other compares its own with it. A difference concerns
the newcomer alone: it is refused by its own agent, and the run is not bothered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from dtf_lightning.clock import Clock, Deadline
from dtf_lightning.elastic.agent.live.incarnation import Incarnation
from dtf_lightning.elastic.run.keys import Fingerprint, RunPhase, RunView
from dtf_lightning.elastic.run.transactions import unchanged
from dtf_lightning.elastic.settings import ElasticSettings
from dtf_lightning.etcd.session import Write
from dtf_lightning.etcd.store import Compare, Put

_ELASTIC = "elastic."
"""The prefix of the leader's settings, which are compared together with the workers' own."""
RESEND_PAUSE = 2.0
"""Seconds after which a fingerprint is sent again if it has not shown up among the keys."""


@dataclass
class Admission:
    """A node's way into an instance of its run. Used by the loop's thread only."""

    node: str
    settings: ElasticSettings
    clock: Clock
    instance: str = ""
    """The run's instance in which this agent takes part, as a waiting node or as a member."""
    deadline: Deadline = field(default_factory=Deadline)
    """The time at which `advance` must be called at the latest."""
    refusal: str = ""
    """The reason why this node may not join; empty if there is none."""
    _sent_for: str = ""
    _send_again_at: float = 0.0

    def advance(self, view: RunView, workers: Incarnation) -> Iterator[Write]:
        """Admit the node, or find the reason to refuse it; yield the write of its fingerprint if the run has none yet."""
        self.deadline.clear()
        run, worker = view.run, workers.fingerprint()
        if run is None or run.phase is not RunPhase.RUNNING or run.instance != self.instance or self.refusal:
            return
        if workers.instance or workers.failed or not workers.set_up or worker is None:
            return
        mine = self._fingerprint(worker)
        theirs = view.fingerprint
        difference = workers.own_difference()
        if difference is None and theirs is None:
            yield from self._send(view, mine)
            return
        if difference is None and theirs is not None:
            difference = theirs.first_difference(mine)
        if difference is None:
            workers.instance = run.instance
            return
        self._refuse(view, difference)

    def check_settings(self, view: RunView) -> None:
        """Refuse a node with other settings before its workers are started, if the run has a fingerprint already."""
        run, theirs = view.run, view.fingerprint
        if run is None or run.phase is not RunPhase.RUNNING or theirs is None:
            return
        own = Fingerprint(settings={n: v for n, v in theirs.settings.items() if n.startswith(_ELASTIC)})
        difference = own.first_difference(self._fingerprint(Fingerprint()))
        if difference is not None:
            self._refuse(view, difference)

    def _refuse(self, view: RunView, difference: str) -> None:
        others = view.participants(other_than=self.node)
        state = (
            f"The run goes on without it (nodes: {', '.join(others)})"
            if others
            else "Nobody of the run is left, but it can go on where it stopped"
        )
        self.refusal = (
            f"this node may not join run {view.keys.run_id!r}: {difference}. {state}; start the node with the run's script "
            "and settings, or give it a --rdzv-id of its own"
        )

    def _fingerprint(self, worker: Fingerprint) -> Fingerprint:
        own = {f"{_ELASTIC}{name}": str(value) for name, value in asdict(self.settings).items()}
        return Fingerprint(settings={**own, **worker.settings}, parameters=worker.parameters)

    def _send(self, view: RunView, mine: Fingerprint) -> Iterator[Write]:
        now = self.clock.monotonic()
        if self._sent_for == self.instance and now < self._send_again_at:
            self.deadline.bring_forward(self._send_again_at)
            return
        self._sent_for = self.instance
        self._send_again_at = now + RESEND_PAUSE
        self.deadline.bring_forward(self._send_again_at)
        yield Write(
            label="fingerprint",
            compares=(
                Compare(view.keys.fingerprint, "create", "=", 0),
                unchanged(view, view.keys.run),
            ),
            puts=(Put(view.keys.fingerprint, mine.encode()),),
        )
