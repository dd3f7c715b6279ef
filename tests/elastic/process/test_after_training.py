"""What becomes of a live run's nodes once training is over and scripts go on: they export, test, predict."""

from __future__ import annotations

import csv

import pytest

from dtf_lightning.elastic.testkit.faults import Fault
from support.elastic.run import exactly
from support.elastic.training import Training

pytestmark = pytest.mark.process


def test_a_node_comes_while_the_others_export(make_run, tmp_path):
    """It ends with exit code 0 and a sentence; nothing is trained again, and the others do not notice it."""
    go = str(tmp_path / "go")
    held = Fault(at="train_end", action="hold", until=go)
    run = make_run(Training(faults=(held,)), **exactly(2))
    run.start("a", "b")
    for rank in (0, 1):
        run.wait_for_file(tmp_path / f"go.held-{rank}")
    drawn = run.audit().committed_steps
    run.start("c")
    assert run.server.wait(run.nodes["c"].pid, 60) == 0
    assert (
        "has finished (2 of 2 members finished), and a, b still do what the script does" in run.nodes["c"].agent_log()
    )
    (tmp_path / "go").touch()
    assert run.wait_until_over() == {"a": 0, "b": 0, "c": 0}
    run.check(survivors=2)
    assert run.audit().committed_steps == drawn


def evaluating(*after: str, rank: int) -> Training:
    """A training after which the script evaluates; that rank is killed in the first of these."""
    return Training(recipe="counts", after=after, faults=(Fault(at="evaluation", rank=rank),))


DEATHS = [
    (0, ("test", "predict")),
    (1, ("validate", "test")),
    (0, ("predict", "test")),
    *(
        pytest.param(*death, marks=pytest.mark.chaos)
        for death in ((1, ("test", "predict")), (0, ("validate", "test")), (1, ("predict", "test")))
    ),
]


@pytest.mark.parametrize(("rank", "after"), DEATHS)
def test_the_other_of_two_dies(make_run, rank, after):
    """In its second batch: the survivor evaluates all samples, once, as rank 0 of 1; so it does whatever comes next."""
    run = make_run(evaluating(*after, rank=rank), **exactly(2))
    run.start("a", "b")
    run.wait_until_over(failed=1)
    run.check(survivors=1)
    (result,) = run.results().values()
    own = result["own"]
    for what in after:
        if what == "predict":
            assert own[what] == run.training.num_validated
        else:
            assert own[what]["seen"] == run.training.num_validated
            assert own[what]["listed"] == run.training.num_validated
            assert own[what]["loss"] == pytest.approx(own["loss_of_all_validated"])
    assert own["rank"] == [0, 1]
    (log,) = run.folder.glob("csv/*/metrics.csv")
    rows = list(csv.DictReader(log.open()))
    trained = [row["step"] for row in rows if row.get("loss_step")]
    assert len(trained) == len(set(trained)) == run.audit().committed_steps, "the dead worker's log goes on"
    assert float(rows[-1]["seen"]) == run.training.num_validated
    survivor = next(node for node in run.nodes.values() if node.exit_codes() == [0])
    assert f"trainer.{after[0]} runs from its beginning, over all samples, on this worker" in survivor.log()


def test_nobody_dies(make_run):
    """The same evaluations, undisturbed, over the shares of both."""
    run = make_run(Training(recipe="counts", after=("test", "validate", "predict")), **exactly(2))
    run.start("a", "b")
    run.wait_until_over()
    run.check(survivors=2)
    for result in run.results().values():
        own = result["own"]
        assert own["test"]["seen"] == own["validate"]["seen"] == run.training.num_validated
        assert own["test"]["loss"] == pytest.approx(own["loss_of_all_validated"])
        assert own["predict"] == run.training.num_validated / 2


@pytest.mark.parametrize("what", ["test", pytest.param("predict", marks=pytest.mark.chaos)])
def test_one_of_three_dies(make_run, what):
    """The others cannot divide its share: no result, and a sentence with what to do."""
    run = make_run(evaluating(what, "test", rank=1), **exactly(3))
    run.start("a", "b", "c")
    run.wait_until_over(failed=3)
    assert run.results() == {}
    said = [node.log() for node in run.nodes.values() if "PeerError" in node.log()]
    assert len(said) == 2
    for text in said:
        assert f"a worker of 3 went away in trainer.{what}, or before it, after the end of training" in text
        assert f"there is no result. Call trainer.{what}(model, ckpt_path=...) in a run of its own" in text
