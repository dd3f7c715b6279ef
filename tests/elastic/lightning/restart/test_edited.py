"""Something is edited between two lives of a run in restart mode: it goes on and says so, or refuses, never from zero in silence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dtf_lightning.elastic.lightning.restart.former_life import Change, changes, first_difference, refusal
from dtf_lightning.elastic.lightning.run.exits import WorkerStopped
from dtf_lightning.errors import SettingsError
from support.elastic.programs.restart_life import Ending, Killed, snapshots_in
from support.elastic.run_of_one import Net, fit

LAST_STEP = 18
"""3 epochs of 6 batches."""
LOGGER = "dtf_lightning"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The training script, as far as its text is concerned."""
    path = tmp_path / "train.py"
    path.write_text("trainer.fit(model)\n")
    monkeypatch.setattr(sys, "argv", [str(path)])
    return path


def stop_at(life: Any, step: int, **arguments: Any) -> Net:
    """One life that is stopped after that many steps; its model."""
    ending = Ending("on_train_batch_end", step)
    with pytest.raises(WorkerStopped):
        life(ending, **arguments)
    return ending.model


def test_a_comment_is_edited(tmp_path: Path, life: Any, script: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The script's text differs: the next life goes on at the exact sample, and says what differs."""
    undisturbed = fit(tmp_path, elastic=False)
    stop_at(life, 4)
    script.write_text("trainer.fit(model)  # as fast as it can\n")
    with caplog.at_level("WARNING", logger=LOGGER):
        second = life()
    assert second.model.drawn == undisturbed.model.drawn[4:]
    assert second.model.losses == undisturbed.model.losses[4:]
    assert "run 'run' goes on although this is not as it was in its last life: script content" in caplog.text


def test_nothing_is_edited(life: Any, script: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No word about it."""
    del script
    with caplog.at_level("WARNING", logger=LOGGER):
        stop_at(life, 4)
        life()
    assert "goes on although" not in caplog.text
    assert "begins anew" not in caplog.text


def test_a_script_that_was_moved(tmp_path: Path, life: Any, script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its node's memory is not found under the other path, and what it had written into the run's folder is."""
    stop_at(life, 4, snapshots={"snapshot_memory": 0})
    script.rename(tmp_path / "better.py")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "better.py")])
    assert len(life().model.drawn) == LAST_STEP - 4


def test_two_projects_with_one_id(
    tmp_path: Path, life: Any, script: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another script, in a folder of its own, under the same id on the same node: neither takes what the other has left."""
    del script
    stop_at(life, 4)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "another/train.py")])
    with caplog.at_level("WARNING", logger=LOGGER):
        second = life(snapshots={"run_dir": str(tmp_path / "another/run")})
    assert len(second.model.drawn) == LAST_STEP
    assert not [record for record in caplog.records if record.name == LOGGER]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"precision": "bf16-mixed"}, "Trainer(precision) (32-true before, bf16-mixed now)"),
        ({"gradient_clip_val": 0.5}, "Trainer(gradient_clip_val) (None before, 0.5 now)"),
        ({"elastic_seed": 5}, "ElasticCallback(seed) (None before, 5 now)"),
        ({"tail": "drop"}, "ElasticCallback(tail) (None before, drop now)"),
    ],
)
def test_a_setting_is_edited(life: Any, caplog: pytest.LogCaptureFixture, changed: dict[str, Any], said: str) -> None:
    """Training goes on with the new value, and the log has both."""
    stop_at(life, 4)
    with caplog.at_level("WARNING", logger=LOGGER):
        second = life(**changed)
    assert len(second.model.drawn) == LAST_STEP - 4
    assert said in caplog.text


def test_a_setting_that_may_not_change(tmp_path: Path, life: Any) -> None:
    """Refused by name, with the way out; nothing is lost, so that the run goes on once it is set back."""
    stop_at(life, 4, virtual_ranks=2)
    with pytest.raises(SettingsError, match=r"ElasticCallback\(virtual_ranks\) \(2 before, 3 now\).*Set it back"):
        life(virtual_ranks=3)
    assert snapshots_in(tmp_path)
    assert life(virtual_ranks=2).trainer.global_step == LAST_STEP // 2


class Wider(Net):
    """The model with one more layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers.append(torch.nn.Linear(1, 1))


def test_another_model(tmp_path: Path, life: Any) -> None:
    """The snapshot does not fit: refused with the first parameter that differs; with the model as it was, it goes on."""
    stop_at(life, 4)
    with pytest.raises(SettingsError, match=r"a snapshot of step 4 .* layers.4.weight is not there in the state and"):
        life(model=Wider())
    assert snapshots_in(tmp_path)
    assert len(life().model.drawn) == LAST_STEP - 4


def test_the_record_is_lost(tmp_path: Path, life: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Which run a node's snapshots are of is not written down any more: they tell it themselves."""
    stop_at(life, 4)
    for path in tmp_path.rglob("run.json"):
        path.unlink()
    with caplog.at_level("WARNING", logger=LOGGER):
        assert len(life().model.drawn) == LAST_STEP - 4
    assert "no record of the run is left beside" in caplog.text


def test_killed_before_the_first_snapshot(life: Any, caplog: pytest.LogCaptureFixture) -> None:
    """There is nothing to go on from: training begins anew, and says so, and what would have kept a state."""
    with pytest.raises(Killed):
        life(Ending("on_before_backward", 4, "kill"))
    with caplog.at_level("WARNING", logger=LOGGER):
        second = life()
    assert len(second.model.drawn) == LAST_STEP
    assert "run 'run' begins anew at step 0, in its life 2: no intact snapshot" in caplog.text
    assert "snapshot_every_n_steps" in caplog.text


def test_what_differs() -> None:
    """Changed, added and removed settings, in order; nothing where the former life remembered none."""
    found = changes({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "4", "d": "5"})
    assert [str(change) for change in found] == [
        "b (2 before, 4 now)",
        "c (3 before, nothing now)",
        "d (nothing before, 5 now)",
    ]
    assert changes({}, {"a": "1"}) == []
    assert refusal("run", found, "/memory") == ""
    fixed = [Change(name="ElasticCallback(virtual_ranks)", before="2", now="4")]
    assert "remove what it has left (/memory)" in refusal("run", fixed, "/memory")


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        (["w float32 (2,)"], ["w float32 (2,)"], ""),
        (["w float32 (2,)"], ["w float32 (3,)"], "w is float32 (2,) in the state and float32 (3,) in the model"),
        (["w float32 (2,)"], [], "w is float32 (2,) in the state and not there in the model"),
        (["optimizer[0] SGD"], ["optimizer[0] Adam"], "optimizer[0] is SGD in the state and Adam in the model"),
        (["a x", "b x"], ["b x", "a x"], "the order of its parameters"),
        ([], ["w float32 (2,)"], "its parameters or optimizers"),
    ],
)
def test_how_a_model_differs(before: list[str], now: list[str], said: str) -> None:
    """The first line that differs, in words."""
    assert first_difference(before, now) == said
