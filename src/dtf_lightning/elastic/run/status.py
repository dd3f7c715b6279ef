"""A run from outside, for `dtf status` and `dtf drain`: everything comes from the keys, no agent is asked."""

from __future__ import annotations

import time
from dataclasses import dataclass

from dtf_lightning.elastic.rules.generation import Generation
from dtf_lightning.elastic.rules.records import ENDED
from dtf_lightning.elastic.rules.state import take_over
from dtf_lightning.elastic.rules.status import NodeStatus, node_statuses
from dtf_lightning.elastic.run.keys import ROOT, RunInfo, RunKeys, RunPhase, RunView, run_id_of
from dtf_lightning.elastic.settings import ElasticSettings
from dtf_lightning.errors import SettingsError
from dtf_lightning.etcd.store import Compare, Put, RangeResult, Store

SHOWN = 10
"""Events in the lines for a terminal."""


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """What the keys say of a run at one moment."""

    run_id: str
    phase: RunPhase | None
    """`None` before the run's first leader."""
    mode: str
    """`live` or `restart`; empty before the run's first leader."""
    reason: str
    """What is waited for, in the leader's words; or why the run is over."""
    paused: bool
    """Nobody trains until more nodes come."""
    leader: str | None
    """The node that leads; `None` between two."""
    generation: Generation | None
    nodes: tuple[NodeStatus, ...]
    min_nodes: int
    max_nodes: int
    started_at: float
    """Seconds since the epoch; 0 when it is not known."""
    events: tuple[tuple[float, str], ...] = ()
    """(seconds since the epoch, text) of the last important events of the nodes that are here, oldest first."""

    def describe(self) -> list[str]:
        """The status in lines, for a terminal."""
        phase = "starting" if self.phase is None else "paused" if self.paused else self.phase.value
        generation = self.generation
        where = (
            f"generation {generation.number} ({generation.kind}), {len(generation.members)} nodes, "
            f"{generation.world_size} workers"
            if generation is not None
            else "no generation yet"
        )
        mode = f"mode={self.mode}, " if self.mode else ""
        lines = [f"run {self.run_id}: {phase}, {mode}{where}, {self.min_nodes} to {self.max_nodes} nodes"]
        if generation is not None and generation.reason:
            lines.append(f"formed because: {generation.reason}")
        if self.reason:
            lines.append(f"now: {self.reason}")
        for node in self.nodes:
            ranks = f"ranks {node.ranks.start}-{node.ranks.stop - 1}" if node.ranks else "no rank"
            star = " (leader)" if node.node == self.leader else ""
            detail = f": {node.detail}" if node.detail else ""
            lines.append(f"  {node.node}  {node.role.value}, {node.state}, {ranks}{star}{detail}")
        if self.events:
            lines.append("last events:")
        lines += [f"  {time.strftime('%H:%M:%S', time.localtime(at))}  {text}" for at, text in self.events[-SHOWN:]]
        return lines


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """One line of the list of runs."""

    run_id: str
    phase: RunPhase | None
    num_nodes: int
    generation: int
    world_size: int


def read_status(store: Store, run_id: str) -> RunStatus:
    """The run as of now. Raises `SettingsError` for a run that is not there (naming those that are), `StoreError`."""
    view = _read(store, run_id)
    run = view.run or RunInfo(instance="")
    generation, note = view.generation, view.status
    settings = ElasticSettings(min_nodes=run.min_nodes, max_nodes=run.max_nodes)
    members = generation.members if generation is not None else ()
    state = take_over(
        settings,
        epoch=0,
        instance=run.instance,
        generation=generation,
        directive=view.directive,
        records=sorted(view.nodes.values(), key=lambda record: record.order),
        now=0.0,
        wall=0.0,
        reachable={member.node for member in members} if run.phase is RunPhase.RUNNING else (),
    )
    over = run.phase is not RunPhase.RUNNING
    leader = view.leader
    return RunStatus(
        run_id=run_id,
        phase=view.run.phase if view.run is not None else None,
        mode=run.mode if view.run is not None else "",
        reason=run.reason if over else note.reason if note is not None else "",
        paused=not over and note is not None and note.paused,
        leader=leader.node if leader is not None else None,
        generation=generation,
        nodes=tuple(node_statuses(settings, state)) if not over else (),
        min_nodes=run.min_nodes,
        max_nodes=run.max_nodes,
        started_at=run.started_at,
        events=tuple(view.happenings()),
    )


def list_runs(store: Store) -> list[RunSummary]:
    """Every run whose keys are there, those that are over included, by id. Raises `StoreError`."""
    everything = store.range(ROOT)
    summaries = []
    for run_id in sorted({run_id_of(kv.key) for kv in everything.kvs}):
        view = _view(everything, run_id)
        generation = view.generation
        summaries.append(
            RunSummary(
                run_id=run_id,
                phase=view.run.phase if view.run is not None else None,
                num_nodes=len(view.nodes),
                generation=generation.number if generation is not None else 0,
                world_size=generation.world_size if generation is not None else 0,
            )
        )
    return summaries


def request_drain(store: Store, run_id: str, node: str) -> str:
    """Ask a node, given by its id or the beginning of it, to leave gracefully; the node's whole id.

    Raises `SettingsError` for an unknown run (naming those that are there), an unknown node (naming those of the run)
    and a beginning that fits several nodes; `StoreError`.
    """
    view = _read(store, run_id)
    here = sorted(record.node for record in view.nodes.values() if record.state not in ENDED)
    found = [node] if node in here else [name for name in here if name.startswith(node)]
    if not node or not found:
        raise SettingsError(
            f"cannot drain {node!r}: no such node in run {run_id!r}; its nodes are: {', '.join(here) or 'none'}"
        )
    if len(found) > 1:
        raise SettingsError(
            f"cannot drain {node!r}: it may be any of {', '.join(found)} in run {run_id!r}; write more of the name"
        )
    key = view.keys.node(found[0])
    # Under the node's own lease: the request goes with the node, whatever becomes of it.
    result = store.txn(
        [Compare(key, "create", "!=", 0)], [Put(view.keys.drain(found[0]), b"{}", lease=view.lease(key))]
    )
    if not result.succeeded:
        raise SettingsError(f"cannot drain {found[0]!r}: it has just left run {run_id!r}")
    return found[0]


def _read(store: Store, run_id: str) -> RunView:
    view = _view(store.range(RunKeys(run_id).prefix), run_id)
    if view.empty:
        runs = ", ".join(repr(summary.run_id) for summary in list_runs(store))
        raise SettingsError(f"no run {run_id!r} at this etcd; the runs there are: {runs or 'none'}")
    return view


def _view(result: RangeResult, run_id: str) -> RunView:
    keys = RunKeys(run_id)
    view = RunView(keys)
    mine = tuple(kv for kv in result.kvs if kv.key.startswith(keys.prefix))
    view.reset(RangeResult(result.revision, mine))
    return view
