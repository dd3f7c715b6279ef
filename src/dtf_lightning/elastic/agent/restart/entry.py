"""`RunEntry` is a node's way into a run in restart mode: it takes part in it, begins it, or is refused.

Rules that this file guards:

* a node with another script, another `--nnodes` or in live mode is refused while somebody takes part in the run;
* a run of which nobody is left goes on when nodes that are started like its own come; for others it is over, once its
  nodes have had the time in which an agent that lost its lease registers again.
"""

from __future__ import annotations

from dataclasses import dataclass

from dtf_lightning.clock import Clock
from dtf_lightning.elastic.run.keys import RESTART, RunInfo, RunPhase, RunView
from dtf_lightning.elastic.run.refusal import may_not_join, other_mode
from dtf_lightning.elastic.run.transactions import begin, new_run, unchanged
from dtf_lightning.elastic.settings import AgentSettings
from dtf_lightning.etcd.session import Write


@dataclass
class RunEntry:
    """The decision about a node's entry: it reads the view and returns what to write. Used by the agent's loop only."""

    view: RunView
    node: str
    settings: AgentSettings
    script: str
    clock: Clock
    _nobody_since: float | None = None
    """The time (monotonic seconds) since which no node has taken part in a run that is not this node's."""

    def refusal(self) -> str:
        """Return why this node may not take part; empty if it may, or if no node of the run is left to mind."""
        run, others = self.view.run, self.view.participants(other_than=self.node)
        if others:
            self._nobody_since = None
        difference = self._difference(run) if others else ""
        return may_not_join(self.view, others, difference) if difference else ""

    def may_take_part(self) -> bool:
        """Return whether the run that is there goes on and is this node's."""
        run = self.view.run
        return run is not None and run.phase is RunPhase.RUNNING and not self._difference(run)

    def why_begin(self) -> tuple[str, float | None]:
        """Return why a new run begins in this one's place, or an empty text and when to ask again (monotonic seconds)."""
        run = self.view.run
        if run is None:
            return "nothing has been trained under this run id", None
        if run.phase is not RunPhase.RUNNING:
            return f"the earlier run {run.instance} is {run.phase.value}", None
        difference = self._difference(run)
        if not difference:
            return "", None
        if self.view.generation is not None and run.mode == RESTART:
            now = self.clock.monotonic()
            self._nobody_since = now if self._nobody_since is None else self._nobody_since
            over_at = self._nobody_since + self.settings.comeback
            if now < over_at:
                return "", over_at
        return f"nobody of the earlier run {run.instance} is left; {difference}", None

    def begin(self, reason: str) -> tuple[Write, RunInfo]:
        """Return the write that begins the run unless another node has done so meanwhile, and the run's record."""
        keys = self.view.keys
        run = new_run(self.settings.elastic, reason=reason, wall=self.clock.wall(), mode=RESTART, script=self.script)
        fence = unchanged(self.view, keys.run)
        return Write(label="begin the run", compares=(fence,), puts=begin(keys, run)), run

    def _difference(self, run: RunInfo | None) -> str:
        """Return how this node differs from those of the run, if that is still going."""
        if run is None or run.phase is not RunPhase.RUNNING:
            return ""
        if run.mode != RESTART:
            return other_mode(run, RESTART)
        if run.script and self.script and run.script != self.script:
            return f"the run trains {run.script!r}, this node {self.script!r}"
        elastic = self.settings.elastic
        theirs, ours = (run.min_nodes, run.max_nodes), (elastic.min_nodes, elastic.max_nodes)
        if theirs != ours:
            return f"the run has --nnodes={theirs[0]}:{theirs[1]}, this node {ours[0]}:{ours[1]}"
        return ""
