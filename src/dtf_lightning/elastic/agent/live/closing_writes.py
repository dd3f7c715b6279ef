"""The last writes of a live agent when it goes, besides the deletion of its own keys."""

from __future__ import annotations

from dtf_lightning.elastic.agent.live.worker_group import WorkerGroup
from dtf_lightning.elastic.run.keys import RunPhase, RunView
from dtf_lightning.elastic.run.transactions import end, leads, resign
from dtf_lightning.etcd.session import Write


def last_writes(view: RunView, workers: WorkerGroup, instance: str, *, resume: bool) -> tuple[Write, ...]:
    """Return the writes that end the run if no other node is left, which frees its id, and give the leader key back.

    `resume`: a run that has trained, and that its last node leaves, is not over. One that has not is, without having finished.
    """
    writes: list[Write] = []
    me, leader, run = workers.address.node, view.leader, view.run
    alone = not any(other != me for other in view.nodes)
    mine = leader is not None and leader.node == me
    running = run is not None and run.phase is RunPhase.RUNNING and run.instance == instance
    failed, left = workers.incarnation.failed, resume and workers.leaving
    if alone and running and (mine or leader is None) and view.generation is not None:
        trained = instance in view.saw_trained or workers.incarnation.trained or view.generation.trained
        if left and trained and not failed:
            return (resign(view.keys, leader.epoch),) if mine and leader is not None else ()
        phase = RunPhase.ABORTED if failed or left else RunPhase.FINISHED
        reason = f"the last node is gone: {failed or workers.leaving or 'its workers ended'}"
        writes.append(end(view, phase, reason, leads(view.keys, leader.epoch if leader is not None else 0)))
    if mine and leader is not None:
        writes.append(resign(view.keys, leader.epoch))
    return tuple(writes)
