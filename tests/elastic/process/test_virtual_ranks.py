"""Eight logical ranks on real gloo ranks: any history of worlds comes to the same bits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dtf_lightning.elastic.testkit.faults import Fault
from support.elastic.run import exactly
from support.elastic.training import Training

pytestmark = pytest.mark.process

EIGHT: dict[str, Any] = {"virtual_ranks": 8, "augments": True, "dropout": 0.3, "clip": 1.0, "validates": False}
"""132 samples by 8 times 4: four whole steps, and one that only logical rank 0 has samples for."""


def bits(run: Any) -> dict[str, Any]:
    """Hashes of weights, optimizer and scheduler state, BatchNorm's statistics; the same for all who came to the end."""
    found = [result["same"] | {"buffers": result["own"]["buffers"]} for result in run.results().values()]
    assert all(one == found[0] for one in found), found
    return found[0]


_alone: list[dict[str, Any]] = []


@pytest.fixture
def alone(make_run: Any) -> dict[str, Any]:
    """What one worker comes to that computes all eight; found out once."""
    if not _alone:
        run = make_run(Training(**EIGHT), **exactly(1))
        run.start("a")
        run.wait_until_over()
        run.check(survivors=1, epochs=2)
        _alone.append(bits(run))
    return _alone[0]


@pytest.mark.parametrize(("num_nodes", "num_workers"), [(2, 1), (2, 4)])
def test_fixed_worlds(make_run, alone, num_nodes, num_workers):
    """Two workers of four logical ranks with DataLoader workers of their own, and eight of one."""
    run = make_run(Training(**EIGHT, num_data_workers=2 if num_workers == 1 else 0), **exactly(num_nodes))
    run.start(*"ab"[:num_nodes], num_workers=num_workers)
    run.wait_until_over()
    run.check(survivors=num_nodes * num_workers, epochs=2)
    assert bits(run) == alone


def test_joins_and_leaves(make_run, alone):
    """1 -> 2 -> 3 -> 1: two come in mid-epoch, two are asked to leave in the second epoch, at once or one by one."""
    run = make_run()
    two, three, leaving, last = (str(run.folder / name) for name in ("two", "three", "leaving", "last"))
    run.training = Training(
        **EIGHT,
        faults=(
            Fault(at="train_start", action="hold", until=two),
            Fault(at="forward", generation=2, action="hold", until=three),
            Fault(at="forward", step=5, rank=1, generation=3, action="leave"),
            Fault(at="forward", step=5, rank=2, generation=3, action="leave"),
            Fault(at="forward", step=5, generation=3, action="hold", until=leaving),
            Fault(at="forward", generation=4, action="hold", until=last),
        ),
    )
    run.start("a")
    run.wait_for_held("two", 0)
    run.start("b")
    run.wait_for(lambda view: view.directive is not None and view.directive.target == 2, "b's join")
    run.release("two")
    run.wait_for_held("three", 0, 1)
    run.start("c")
    run.wait_for(lambda view: view.directive is not None and view.directive.target == 3, "c's join")
    run.release("three")
    run.wait_for_held("leaving", 0, 1, 2)
    run.wait_for(lambda view: view.directive is not None and view.directive.leaving, "the first leave")
    run.release("leaving")
    # The second may still join the first: the directive is written before the stop is agreed on.
    after = run.wait_for(lambda view: view.generation is not None and view.generation.number >= 4, "the first is gone")
    if after.generation.world_size > 1:
        run.wait_for(lambda view: view.directive.target == 5 and view.directive.leaving, "the other leave")
    run.release("last")
    run.wait_until_over()
    run.check(survivors=1, epochs=2)
    assert {event.world_size for event in run.rescales()} >= {3, 1}
    assert bits(run) == alone


def test_a_worker_without_a_sample_in_the_whole_epoch(make_run):
    """It logs nothing, and takes part in the sums at the epoch's end all the same: nobody waits for it."""
    few = Training(**EIGHT, num_samples=4)
    run = make_run(few, **exactly(2))
    run.start("a", "b")
    run.wait_until_over()
    run.check(survivors=2, epochs=2)
    one = make_run(few, **exactly(1))
    one.start("a")
    one.wait_until_over()
    assert bits(run) == bits(one)
    losses = [result["own"]["metrics"]["loss_epoch"] for result in (*run.results().values(), *one.results().values())]
    assert losses == [pytest.approx(losses[0])] * 3


def test_deaths(make_run, alone):
    """4 -> 3 -> 2: kill -9 in a backward, whose step is drawn again, and after an optimizer step, which counts."""
    faults = (
        Fault(at="backward", step=1, rank=1),
        Fault(at="after_optimizer_step", step=5, rank=0, generation=2),
    )
    run = make_run(Training(**EIGHT, faults=faults), **exactly(4))
    run.start("a", "b", "c", "d")
    run.wait_until_over(failed=2)
    run.check(survivors=2, epochs=2)
    assert bits(run) == alone


def test_checkpoint_in_another_world(make_run, alone):
    """Three save after step 3, in mid-epoch, and all die in step 4; two go on from there."""
    calm = Training(**EIGHT, checkpoint_every=3)
    first = make_run(replace(calm, faults=(Fault(at="forward", step=4, generation=None),)), **exactly(3))
    first.start("a", "b", "c")
    first.wait_until_over(failed=3)
    (checkpoint,) = (first.folder / "checkpoints").glob("*.ckpt")
    second = make_run(replace(calm, resume=str(checkpoint), checkpoint_every=0), **exactly(2))
    second.start("a", "b")
    second.wait_until_over()
    assert bits(second) == alone


def test_more_workers_than_logical_ranks(make_run):
    """Three nodes for two logical ranks: the third is refused with a reason, the others train, from the same weights."""
    training = Training(virtual_ranks=2, max_epochs=1, validates=False, batch_norm=False, seeded=False)
    run = make_run(training, **exactly(3))
    run.start("a", "b", "c")
    codes = run.wait_until_over(failed=1)
    run.check(survivors=2, epochs=1)
    refused = next(name for name, code in codes.items() if code)
    assert f"node {refused} came as rank 2" in run.nodes[refused].log()
