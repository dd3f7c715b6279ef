"""Saves and loads sharded state through `torch.distributed.checkpoint`; the number of ranks may differ in between.

Each rank writes its shards (DTensors, or whatever the planner knows) into one folder; rank 0 then takes the checksums
of all files and lists the folder in the manifest. Until then the checkpoint does not exist.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch.distributed.checkpoint as dcp

from dtf_lightning.elastic.checkpoints.folder import CheckpointFolder
from dtf_lightning.elastic.checkpoints.reader import read_runs, verify
from dtf_lightning.elastic.checkpoints.record import Record
from dtf_lightning.elastic.checkpoints.storage.opening import open_storage
from dtf_lightning.elastic.collectives.rank_zero_work import from_rank_zero
from dtf_lightning.errors import CheckpointDamaged, CheckpointError

Broadcast = Callable[[Any], Any]


def save_sharded(
    folder: CheckpointFolder | None,
    name: str,
    state: dict[str, Any],
    *,
    step: int,
    metrics: Mapping[str, float] | None = None,
    rank: int = 0,
    broadcast: Broadcast = lambda value: value,
) -> Record | None:
    """Save one state of which every rank holds a part; a collective.

    Args:
        folder: the checkpoint folder on rank 0, `None` on other ranks. All ranks must see its storage.
        name: the checkpoint's name, which is that of a folder.
        broadcast: a collective that gives rank 0's object to all ranks.

    Returns: the record, on all ranks; `None` when the policy does not want it.

    Raises:
        CheckpointError: on all ranks; nothing was saved and nothing removed.
    """

    def begin() -> tuple[Record, str]:
        assert folder is not None
        record = folder.begin(name, step=step, metrics=metrics)
        return record, folder.storage.location(record.name)

    begun = from_rank_zero(begin, rank=rank, broadcast=broadcast)
    assert begun is not None
    record, location = begun
    failure: BaseException | None = None
    try:
        # DCP collects every rank's errors and raises the same on all ranks.
        dcp.save(state, checkpoint_id=location)
    except BaseException as error:
        failure = error

    def finish() -> Record | None:
        assert folder is not None
        if failure is not None:
            folder.abandon(record)
            raise CheckpointError(f"saving {location} failed: {failure}; earlier checkpoints are intact") from failure
        storage = open_storage(location)
        return folder.finish(record, storage.names())

    return from_rank_zero(finish, rank=rank, broadcast=broadcast)


def load_sharded(
    location: str,
    state: dict[str, Any],
    *,
    rank: int = 0,
    broadcast: Broadcast = lambda value: value,
) -> None:
    """Load into `state`, in place, however it is sharded; a collective.

    Args:
        location: the path or URL of the checkpoint's folder.

    Raises:
        CheckpointDamaged: on all ranks; a file is missing, or is not what was written.
    """
    from_rank_zero(lambda: _verify(location), rank=rank, broadcast=broadcast)
    dcp.load(state, checkpoint_id=location)


def _verify(location: str) -> None:
    parent, _, name = location.rstrip("/").rpartition("/")
    storage = open_storage(parent or ".")
    for loaded in read_runs(storage).values():
        for record in loaded.manifest.records if loaded.manifest else ():
            if record.name == name:
                verdict = verify(storage, record)
                if not verdict.intact:
                    raise CheckpointDamaged(f"{location} is {verdict.integrity.value}: {verdict.reason}")
                return
    raise CheckpointDamaged(f"{location} is in no manifest: it was never finished, or is not one of ours")
