"""What living peers agree on before a generation trains: `PeerState`, in a process group of one."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch.distributed as dist

from dtf_lightning.elastic.lightning.rewind.rewind import Rewind
from dtf_lightning.elastic.lightning.run.live import PeerState
from dtf_lightning.elastic.lightning.run.start_world import SeenWorld
from dtf_lightning.elastic.lightning.run.world import World
from dtf_lightning.elastic.rules.resume import Position

LEFT_BY_A_SENDER = SeenWorld(world_size=3, num_training_batches=7, accumulate_grad_batches=1)


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def share(*, trained: bool) -> Any:
    """Let a worker share that has the start world of a run; returns its parts."""
    parts: Any = SimpleNamespace(
        trainer=pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False),
        progress=SimpleNamespace(
            loaded=None, trained=trained, first_hooks_done=False, position=lambda _: Position(trained=trained)
        ),
        rewind=Rewind(),
        run_log=None,
        start_world=SimpleNamespace(run_began=LEFT_BY_A_SENDER),
        settings=SimpleNamespace(snapshots=SimpleNamespace(every_n_steps=None)),
    )
    link: Any = SimpleNamespace(trained=lambda: None)
    source = PeerState(link)
    source.attach(parts)
    assert source.share(World(rank=0, size=1, formed=True)).first is not trained
    return parts


@pytest.mark.usefixtures("group")
def test_a_run_that_nobody_has_trained_begins_in_its_own_world():
    """A sender that died in mid-transfer has left its start world, and with it the run would never begin."""
    assert share(trained=False).start_world.run_began is None


@pytest.mark.usefixtures("group")
def test_a_run_that_trains_keeps_the_world_in_which_it_began():
    assert share(trained=True).start_world.run_began == LEFT_BY_A_SENDER
