"""What an agent writes when it goes, besides taking its own keys back."""

from __future__ import annotations

from dataclasses import replace

from dtf_lightning.elastic.agent.inbox import Write
from dtf_lightning.elastic.agent.live.worker_group import WorkerGroup
from dtf_lightning.elastic.run.keys import RunPhase, RunView
from dtf_lightning.etcd.store import Compare, Delete, Put


def last_writes(view: RunView, node: WorkerGroup, instance: str) -> tuple[Write, ...]:
    """End the run if nobody else is left, so that its id can be used again at once; give the leader key back."""
    writes: list[Write] = []
    me, leader, run = node.place.node, view.leader, view.run
    alone = not any(other != me for other in view.nodes)
    leads = leader is not None and leader.node == me
    running = run is not None and run.phase is RunPhase.RUNNING and run.instance == instance
    if alone and running and (leads or leader is None) and run is not None and view.generation is not None:
        phase = RunPhase.ABORTED if node.failed else RunPhase.FINISHED
        reason = f"the last node is gone: {node.failed or node.leaving or 'its workers ended'}"
        epoch = leader.epoch if leader is not None else 0
        writes.append(
            Write(
                label="end the run",
                compares=(
                    Compare(view.keys.leader, "create", "=", epoch),
                    Compare(view.keys.run, "mod", "=", view.mod_revision(view.keys.run)),
                ),
                puts=(Put(view.keys.run, replace(run, phase=phase, reason=reason).encode()),),
            )
        )
    if leads and leader is not None:
        writes.append(
            Write(
                label="resign",
                compares=(Compare(view.keys.leader, "create", "=", leader.epoch),),
                puts=(Delete(view.keys.leader),),
            )
        )
    return tuple(writes)
