"""Uneven shares on real gloo ranks: the weights are those of one process that has the whole batch."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from dtf_lightning.elastic.testkit.faults import Fault
from support.elastic.run import exactly
from support.elastic.training import Training

pytestmark = pytest.mark.process

SMOOTH = {"optimizer": "sgd", "batch_norm": False, "dropout": 0.0, "validates": False, "num_samples": 50}
"""Nothing in it depends on how a batch is divided, so that only rounding may differ."""


_known: dict[int, list[float]] = {}


@pytest.fixture
def one_process(make_run: Any) -> Any:
    """Weights after two epochs of one process that has each step's whole batch at once; trained once per batch size."""

    def get(batch_size: int) -> list[float]:
        if batch_size not in _known:
            run = make_run(Training(**SMOOTH, batch_size=batch_size), **exactly(1))
            run.start("a")
            run.wait_until_over()
            _known[batch_size] = weights(run)
        return _known[batch_size]

    return get


def weights(run: Any) -> list[float]:
    return next(iter(run.results().values()))["own"]["weights"]


@pytest.mark.parametrize("num_nodes", [1, 3])
def test_global_batch_equals_one_process(make_run, one_process, num_nodes):
    """20 samples per step: 5 micro-batches of 4 alone, two of (4, 3, 3) among three; the last step has 10."""
    run = make_run(Training(**SMOOTH, batch="global", global_batch=20), **exactly(num_nodes))
    run.start(*"abc"[:num_nodes])
    run.wait_until_over()
    run.check(survivors=num_nodes, epochs=2)
    assert weights(run) == pytest.approx(one_process(20), abs=2e-6)


@pytest.mark.parametrize("place", ["backward", "after_optimizer_step"])
def test_global_batch_through_a_death(make_run, one_process, place):
    """One of three dies in the second step; the two others accumulate three micro-batches where it was two."""
    fault = Fault(at=place, step=1, rank=1)
    run = make_run(Training(**SMOOTH, batch="global", global_batch=20, faults=(fault,)), **exactly(3))
    run.start("a", "b", "c")
    run.wait_until_over(failed=1)
    run.check(survivors=2, epochs=2)
    assert weights(run) == pytest.approx(one_process(20), abs=2e-6)


def test_global_batch_through_a_join(make_run, one_process):
    """A second node comes in mid-epoch; the batch of a step is that of the first generation, 4."""
    run = make_run(max_nodes=2)
    hold = Fault(at="batch_end", step=3, action="hold", until=str(run.folder / "joined"))
    run.training = Training(**SMOOTH, batch="global", faults=(hold,))
    run.start("a")
    run.wait_for_world(1)
    run.start("b")
    run.wait_for(lambda view: view.directive is not None and view.directive.target == 2, "the preparation of b's join")
    run.release("joined")
    run.wait_until_over()
    run.check(survivors=2, epochs=2)
    assert weights(run) == pytest.approx(one_process(4), abs=2e-6)


def test_exact_tail_equals_one_process(make_run, one_process):
    """50 samples by 12: the last step has 2 for three ranks. No hang, no padding, no sample lost."""
    run = make_run(Training(**SMOOTH, tail="exact"), **exactly(3))
    run.start("a", "b", "c")
    run.wait_until_over()
    run.check(survivors=3, epochs=2)
    assert weights(run) == pytest.approx(one_process(12), abs=2e-6)


def test_exact_tail_with_accumulation_and_a_death(make_run):
    """The rest of an epoch after a death does not divide either: still every sample once."""
    training = Training(num_samples=70, accumulate=2, tail="exact", faults=(Fault(at="backward", step=1, rank=2),))
    run = make_run(training, **exactly(3))
    run.start("a", "b", "c")
    run.wait_until_over(failed=1)
    run.check(survivors=2, epochs=2)


def test_data_of_another_length_is_named(make_run):
    """Two nodes that read different data do not train together."""
    run = make_run(Training(**SMOOTH, grow_data_on="b"), **exactly(2))
    run.start("a", "b")
    run.wait_until_over(failed=2)
    logs = run.nodes["a"].log() + run.nodes["b"].log()  # the first to notice ends the other
    assert re.search("the training loader differs: samples is (50 on a, 51 on b|51 on b, 50 on a)", logs)


@pytest.mark.parametrize(
    ("different", "message"),
    [
        ({"batch_size": 8}, "the training loader differs: batch_size is"),
        ({"num_validated": 80}, "the validation loader differs: batches is"),
    ],
)
def test_a_joiner_that_reads_in_another_way_is_refused(make_run, different, message):
    """It is told what differs and is not started again; the others train on, and every sample is trained once."""
    training = Training(until_stopped=True)
    run = make_run(training)
    run.start("a", "b")
    number = run.wait_for_world(2)
    run.start("c", num_restarts=2, training=replace(training, **different))
    run.wait_for_log("c", message)
    run.wait_for_log("c", "The run goes on without this node")
    number = run.wait_for_world(2, after=number + 1)
    run.wait_for_steps(4)
    run.stop()
    codes = run.wait_until_over(failed=1)
    assert codes["c"] != 0
    assert not (run.folder / "c.pids.2").exists()
    run.check(survivors=2)


def test_global_batch_smaller_than_the_world(make_run):
    """Known when the first generation is formed: an error for all, before anything is trained."""
    run = make_run(Training(**SMOOTH, batch="global", global_batch=1), **exactly(2))
    run.start("a", "b")
    run.wait_until_over(failed=2)
    assert "global_batch=1 is smaller than the world of 2 ranks" in run.nodes["a"].log() + run.nodes["b"].log()


@pytest.mark.parametrize("rule", ["linear", "adam_sde", "adascale"])
def test_learning_rate_follows_the_world(make_run, rule):
    """Three, then two: the survivors hold the scheduler's own value and the same weights and optimizer state."""
    run = make_run(Training(learning_rate=rule, faults=(Fault(at="backward", step=4, rank=1),)), **exactly(3))
    run.start("a", "b", "c")
    run.wait_until_over(failed=1)
    run.check(survivors=2, epochs=2)


def test_one_cycle_with_a_global_batch(make_run):
    """Its set-up looks at the data in a provisional world; nodes that start one after the other agree all the same."""
    run = make_run(Training(**SMOOTH, batch="global", global_batch=20, schedule="onecycle"), **exactly(2))
    run.start("a", "b")
    run.wait_until_over()
    run.check(survivors=2, epochs=2)
