"""How the members of a new generation come to hold one state: compare positions, then send what is newest."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from dtf_lightning.elastic.collectives.state_transfer import receive_state, send_state
from dtf_lightning.elastic.lightning.rewind import training_state
from dtf_lightning.elastic.lightning.rewind.epoch_metrics import dump_logged, load_logged
from dtf_lightning.elastic.lightning.session import start_world
from dtf_lightning.elastic.rules.resume import LoopPhase, Position, ResumePlan, choose_leader

if TYPE_CHECKING:
    from dtf_lightning.elastic.lightning.session.session import ElasticSession


def share_state(session: ElasticSession) -> None:
    """Leave all members with the state of the furthest one. A collective: every member calls it."""
    trainer, progress = session.trainer, session.progress
    plan = _agree(session)
    rank = session.strategy.global_rank
    session.resuming = not session.beginning
    if session.beginning:
        box = [(training_state.dump_start(trainer), session.loaded_position is not None)]
        dist.broadcast_object_list(box, src=plan.leader_rank)
        start, session.resuming = box[0]
        training_state.load_start(trainer, start)
    receivers = [receiver for receiver, source in plan.sources.items() if source == rank]
    if receivers:
        state = training_state.dump_state(trainer, progress) | {
            "logged": dump_logged(trainer),
            "recent_log": session.run_log.recent(),
            "run_began": session.run_began,
        }
        for receiver in receivers:
            send_state(state, receiver)
    elif rank in plan.sources:
        state = receive_state(plan.sources[rank])
        start_world.join(session, state["run_began"])
        training_state.load_state(trainer, progress, state)
        load_logged(trainer, state["logged"])
        session.run_log.adopt_recent(state["recent_log"])
    session.loaded_position = None
    progress.trained = True


def _agree(session: ElasticSession) -> ResumePlan:
    mine = session.progress.position(session.trainer)
    phases = list(LoopPhase)
    # (world_size, 5): every member's position
    row = torch.tensor(
        [int(mine.trained), mine.global_step, mine.batches_total, phases.index(mine.phase), mine.samples]
    )
    rows = [torch.empty_like(row) for _ in range(session.generation.world_size)]
    dist.all_gather(rows, row)
    positions = [
        Position(trained=bool(trained), global_step=step, batches_total=batches, phase=phases[phase], samples=samples)
        for trained, step, batches, phase, samples in (row.tolist() for row in rows)
    ]
    session.beginning = not any(position.trained for position in positions)
    plan = choose_leader(positions)
    if session.beginning and len(set(positions)) == 1:
        # Nobody has trained and all have loaded the same: DDP's broadcast of the weights is enough.
        return replace(plan, sources={})
    return plan


def go_to_loaded_position(session: ElasticSession, position: dict[str, Any]) -> None:
    """Go on at the exact sample of the checkpoint, as a survivor of a rescale would."""
    session.progress.load_state_dict(position)
    session.progress.skip_hooks_of_checkpoint(session.trainer, validated=position["validated"])
    session.progress.settle(session.trainer)
    training_state.clear_restart_flags(session.trainer.fit_loop)
