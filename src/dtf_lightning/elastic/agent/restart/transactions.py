"""Restart mode's transactions on a run's keys, and who may take part. No I/O: reads the view, returns what to write."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace

from dtf_lightning.elastic.agent.inbox import Write
from dtf_lightning.elastic.rules.records import NodeRecord
from dtf_lightning.elastic.rules.rounds import RoundDecision, RoundView, next_round
from dtf_lightning.elastic.run.keys import RunInfo, RunPhase, RunView, encode
from dtf_lightning.elastic.settings import ElasticSettings
from dtf_lightning.etcd.store import Compare, Delete, Put

RESTART = "restart"


@dataclass
class RestartKeys:
    """One node's writes. Used by the agent's loop, and by `close` once the loop has ended."""

    view: RunView
    node: str
    settings: ElasticSettings
    script: str

    def refusal(self, run: RunInfo) -> str:
        """Why this node may not take part; empty when it may, or when nobody of the other kind is left to mind."""
        others = sorted(node for node in self.view.nodes if node != self.node)
        if not others or run.phase is not RunPhase.RUNNING:
            return ""
        name = f"this node may not join run {self.view.keys.run_id!r} (nodes: {', '.join(others)}): "
        way_out = ". Start it like the others, or give it a --rdzv-id of its own"
        if run.mode != RESTART:
            return f"{name}the run is in mode={run.mode}, this node in mode={RESTART}{way_out}"
        if run.script and self.script and run.script != self.script:
            return f"{name}the run trains {run.script!r}, this node {self.script!r}{way_out}"
        theirs, ours = (run.min_nodes, run.max_nodes), (self.settings.min_nodes, self.settings.max_nodes)
        if theirs != ours:
            return f"{name}the run has --nnodes={theirs[0]}:{theirs[1]}, this node {ours[0]}:{ours[1]}{way_out}"
        return ""

    def begin(self, wall: float) -> Write:
        """Start the run, over the keys of one that is over or has crashed."""
        run = RunInfo(
            instance=secrets.token_hex(8),
            started_at=wall,
            min_nodes=self.settings.min_nodes,
            max_nodes=self.settings.max_nodes,
            mode=RESTART,
            script=self.script,
        )
        keys = self.view.keys
        old = (keys.generation, keys.directive, keys.fingerprint, keys.status)
        return Write(
            label="begin the run",
            compares=(self._unchanged(keys.run),),
            puts=(Put(keys.run, run.encode()), *(Delete(key) for key in old)),
        )

    def form(self, view: RoundView, decision: RoundDecision, *, instance: str, wall: float) -> Write:
        """Publish the next round, if all is still as it was when it was decided."""
        generation = next_round(view.current, decision, instance=instance, wall=wall)
        keys = self.view.keys
        members = (keys.node(record.node) for record in decision.members)
        return Write(
            label=f"round {generation.number}",
            compares=tuple(self._unchanged(key) for key in (keys.generation, keys.run, *members)),
            puts=(Put(keys.generation, encode(generation.to_json())),),
        )

    def end(self, phase: RunPhase, reason: str) -> Write:
        """End the run, unless a new round was formed meanwhile."""
        run, keys = self.view.run, self.view.keys
        assert run is not None
        return Write(
            label="end the run",
            compares=(self._unchanged(keys.run), self._unchanged(keys.generation)),
            puts=(Put(keys.run, replace(run, phase=phase, reason=reason).encode()),),
        )

    def last(self, view: RoundView, record: NodeRecord, *, number: int) -> tuple[Write, ...]:
        """End the run with its last member, so that spares go home and the id can be used again at once.

        `record` is this node's, whose workers were started for round `number`.
        """
        others = [
            member.node
            for member in view.current.members
            if member.node != self.node and member.node in view.living and not view.has_finished(member.node)
        ]
        if record.finished == number == view.current.number and not others:
            return (self.end(RunPhase.FINISHED, f"all nodes of round {number} finished"),)
        if set(view.living) <= {self.node}:
            phase = RunPhase.ABORTED if record.suspect and not record.leaving else RunPhase.FINISHED
            return (self.end(phase, f"the last node is gone: {record.detail or 'its workers ended'}"),)
        return ()

    def _unchanged(self, key: str) -> Compare:
        return Compare(key, "mod", "=", self.view.mod_revision(key))
