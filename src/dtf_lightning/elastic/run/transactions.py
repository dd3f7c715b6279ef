"""The transactions by which a run begins, ends and changes its leader, in both modes. No I/O: they are returned.

Rules that this file guards:

* a run's record is written as a whole only when it begins; later writes change fields of the record that is there;
* who writes as leader compares the leader key's create revision with its own epoch;
* who writes without being leader compares the run's record with the one that it has seen.
"""

from __future__ import annotations

import uuid

from dtf_lightning.elastic.run.keys import LIVE, RunInfo, RunKeys, RunPhase, RunView, encode
from dtf_lightning.elastic.settings import ElasticSettings
from dtf_lightning.etcd.session import OWN_LEASE, Write
from dtf_lightning.etcd.store import Compare, Delete, Put


def leads(keys: RunKeys, epoch: int) -> Compare:
    """Holds as long as the leader of this epoch leads; with epoch 0, as long as nobody does."""
    return Compare(keys.leader, "create", "=", epoch)


def unchanged(view: RunView, key: str) -> Compare:
    """Holds as long as the key is as it was seen."""
    return Compare(key, "mod", "=", view.mod_revision(key))


def new_run(settings: ElasticSettings, *, reason: str, wall: float, mode: str = LIVE, script: str = "") -> RunInfo:
    """The record of a run that begins. `wall`: seconds since the epoch."""
    return RunInfo(
        instance=uuid.uuid4().hex[:12],
        reason=reason,
        started_at=wall,
        min_nodes=settings.min_nodes,
        max_nodes=settings.max_nodes,
        mode=mode,
        script=script,
        untrained=mode == LIVE,
    )


def begin(keys: RunKeys, run: RunInfo) -> tuple[Put | Delete, ...]:
    """What begins a run: its record, written over the keys of one that is over or has crashed."""
    stale = (keys.generation, keys.directive, keys.fingerprint, keys.status, keys.rank_zero)
    return (Put(keys.run, run.encode()), *(Delete(key) for key in stale))


def end(view: RunView, phase: RunPhase, reason: str, *fences: Compare) -> Write:
    """End the run that the view shows, unless it was changed meanwhile."""
    run, keys = view.run, view.keys
    assert run is not None
    return Write(
        label="end the run",
        compares=(*fences, unchanged(view, keys.run)),
        puts=(Put(keys.run, run.ended(phase, reason).encode()),),
    )


def campaign(keys: RunKeys, node: str) -> Write:
    """Take the lead, if nobody has it. An agent that nobody can see must not lead: both keys go with the same lease."""
    return Write(
        label="campaign",
        compares=(leads(keys, 0), Compare(keys.node(node), "create", "!=", 0)),
        puts=(Put(keys.leader, encode({"node": node}), lease=OWN_LEASE),),
    )


def claim_rank_zero(view: RunView, member: str) -> Write:
    """Claim what rank zero does in set-up, of the run in the view, unless another node has done so meanwhile."""
    key = view.keys.rank_zero
    return Write(
        label="claim rank zero",
        compares=(
            unchanged(view, key),
            unchanged(view, view.keys.run),
            Compare(view.keys.generation, "create", "=", 0),
        ),
        puts=(Put(key, encode({"member": member})),),
    )


def resign(keys: RunKeys, epoch: int) -> Write:
    """Give the lead of this epoch back."""
    return Write(label="resign", compares=(leads(keys, epoch),), puts=(Delete(keys.leader),))


def ended_by(keys: RunKeys, write: Write) -> RunInfo | None:
    """The record of the run if this write ends it."""
    for put in write.puts:
        if isinstance(put, Put) and put.key == keys.run:
            run = RunInfo.decode(put.value)
            return run if run.phase is not RunPhase.RUNNING else None
    return None
