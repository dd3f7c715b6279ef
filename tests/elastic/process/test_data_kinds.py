"""Shards, streams, several loaders and exact evaluation on real ranks that join, leave and die."""

from __future__ import annotations

from typing import Any

import pytest

from dtf_lightning.elastic.testkit.faults import Fault
from support.elastic.run import exactly
from support.elastic.training import Training

pytestmark = pytest.mark.process


@pytest.mark.parametrize(
    ("data", "arguments"),
    [
        ("shards", {"tail": "exact"}),
        ("streams", {}),
        ("streams", {"num_data_workers": 2, "accumulate": 2}),
        ("forgetful_streams", {}),  # fewer streams than ranks: one has nothing but stand-ins
        ("several", {}),
    ],
    ids=str,
)
def test_a_death(make_run: Any, data: str, arguments: dict[str, Any]) -> None:
    """One of three dies in mid-step: the two others go on with its shards or streams at exactly its place."""
    # A rest of one sample is too few for BatchNorm.
    training = Training(
        data=data, validates=False, batch_norm=False, faults=(Fault(at="backward", step=2, rank=1),), **arguments
    )
    run = make_run(training, **exactly(3))
    run.start("a", "b", "c")
    run.wait_until_over(failed=1)
    run.check(survivors=2, epochs=2)


@pytest.mark.parametrize("data", ["shards", "streams"])
def test_a_join_and_a_leave(make_run: Any, data: str) -> None:
    """A joiner takes over some of it in mid-epoch, and the first one leaves; who stays loads nothing a second time."""
    run = make_run(max_nodes=2)
    joined, gone = str(run.folder / "joined"), str(run.folder / "gone")
    run.training = Training(
        data=data,
        validates=False,
        batch_norm=False,
        tail="exact",
        faults=(
            Fault(at="batch_end", step=3, action="hold", until=joined),
            # Whenever the joiner has come: its imports take longer than any number of steps.
            Fault(at="batch_end", rank=0, generation=2, action="leave"),
            Fault(at="batch_end", rank=0, generation=2, action="hold", until=gone),
        ),
    )
    run.start("a")
    run.wait_for_world(1)
    run.start("b")
    run.wait_for(lambda view: view.directive is not None and view.directive.target == 2, "the preparation of b's join")
    run.release("joined")
    run.wait_for(lambda view: view.directive is not None and view.directive.target == 3, "the preparation of a's leave")
    run.release("gone")
    run.wait_until_over()
    run.check(survivors=1, epochs=2)
    loaded = next(iter(run.results().values()))["own"]["loaded"]
    assert len(loaded) == len(set(loaded)), "a shard was loaded twice"


@pytest.mark.parametrize("place", ["validation", "backward"])
def test_exact_evaluation(make_run: Any, place: str) -> None:
    """50 samples by three ranks, then by two: each counts once in the metric, also of a validation that is run again.

    And in `trainer.test` afterwards, whose metric synchronises at every step.
    """
    fault = Fault(at=place, rank=1, step=11 if place == "validation" else 13)
    training = Training(evaluation="exact", num_validated=50, batch_norm=False, dropout=0.0, faults=(fault,))
    run = make_run(training, **exactly(3))
    run.start("a", "b", "c")
    run.wait_until_over(failed=1)
    run.check(survivors=2, epochs=2)
    for result in run.results().values():
        own = result["own"]
        assert own["metrics"]["val_loss"] == pytest.approx(own["loss_of_all_validated"], rel=1e-5)
        assert own["tested"]["test_loss_epoch"] == pytest.approx(own["loss_of_all_validated"], rel=1e-5)
