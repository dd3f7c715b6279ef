"""A run in restart mode has finished, and its workers are started anew for what the script does after training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback, EarlyStopping, StochasticWeightAveraging

from dtf_lightning.elastic.lightning.run.exits import WorkerStopped
from dtf_lightning.errors import PeerError, RunRefused
from support.elastic.programs.restart_life import Ending, snapshots_in
from support.elastic.run_of_one import Outcome

LAST_STEP = 18
"""3 epochs of 6 batches."""


def weights(outcome: Outcome) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in outcome.state().items()}


class StopsAt(Callback):
    """Ends the training after a number of steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.global_step >= self.step


@pytest.mark.parametrize(
    ("arguments", "last_step"),
    [
        ({}, LAST_STEP),
        ({"max_steps": 7}, 7),
        ({"callbacks": [StopsAt(8)]}, 8),
        ({"callbacks": [EarlyStopping("val_loss", patience=0, mode="max")]}, None),
        ({"callbacks": [StochasticWeightAveraging(swa_lrs=0.01, swa_epoch_start=2)]}, None),
    ],
    ids=["epochs", "steps", "should_stop", "early stopping", "averaged weights"],
)
def test_it_does_not_train_again(
    life: Any, caplog: pytest.LogCaptureFixture, arguments: dict[str, Any], last_step: int | None
) -> None:
    """Killed in the export: the next workers of the same torchrun hold the final weights, and `fit` trains nothing."""
    first = life(ends_well=False, **arguments)
    assert first.trainer.global_step == (last_step or first.trainer.global_step)
    with caplog.at_level("WARNING", logger="dtf_lightning"):
        second = life(ends_well=False, **arguments)
        third = life(**arguments)
    for later in (second, third):
        assert later.model.drawn == []
        assert later.trainer.global_step == first.trainer.global_step
        assert weights(later) == weights(first)
        assert later.metrics() == first.metrics()
    said = f"run 'run' has finished, with {first.trainer.global_step} steps: its workers were started anew"
    assert caplog.text.count(said) == 2


def test_a_node_joins(life: Any) -> None:
    """The joiner's agent is another: if one of those under which the run finished is here, it has finished."""
    first = life(ends_well=False)
    assert life(ends_well=False, agent="agent").model.drawn == []
    assert weights(life(agent="agent")) == weights(first)


def test_the_id_is_free_for_a_new_torchrun(life: Any) -> None:
    """The processes ended well, or were killed after `fit`: another agent begins a run of its own, with nothing left over."""
    life(ends_well=False)
    second = life(agent="another")
    assert len(second.model.drawn) == LAST_STEP
    assert len(life(agent="a third").model.drawn) == LAST_STEP


def test_nothing_is_left(tmp_path: Path, life: Any) -> None:
    """While the script goes on after `fit` one state is kept; once its process has ended well nothing is, in memory or on disk."""
    life(ends_well=False, snapshots={"snapshot_every_n_steps": 4})
    assert len(snapshots_in(tmp_path)) == 1
    life()
    assert not list((tmp_path / "memory").iterdir())
    assert snapshots_in(tmp_path) == []
    assert [path.name for path in (tmp_path / "run/snapshots").rglob("*") if path.is_file()] == ["run.json"]


def test_the_final_state_is_lost(tmp_path: Path, life: Any) -> None:
    """Started anew without any state: refused, because it would train everything again."""
    life(ends_well=False)
    for path in snapshots_in(tmp_path):
        path.unlink()
    with pytest.raises(RunRefused, match=r"has finished, with 18 steps, .* its final state is not kept"):
        life()


def test_a_peer_is_lost_in_a_test(life: Any) -> None:
    """No agent stops this worker (`--max-restarts=0`): it ends with a sentence instead of a result over its own share."""
    outcome = life()
    with pytest.raises(
        PeerError, match=r"went away in trainer.test.*no result.*--max-restarts above 0 all are started"
    ):
        outcome.trainer.strategy.run.go_on_alone("trainer.test", RuntimeError("[gloo] Connection closed by peer"))


def test_stopped_in_the_last_hooks(life: Any) -> None:
    """SIGTERM when no step is left: the final state is kept, the worker ends at once, and the next one trains nothing."""
    undisturbed = life(run_id="undisturbed")
    stopped = Ending("on_train_epoch_end", LAST_STEP)
    with pytest.raises(WorkerStopped):
        life(stopped)
    second = life()
    assert second.model.drawn == []
    assert weights(second) == weights(undisturbed)
