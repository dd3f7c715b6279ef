"""Restart mode in one process: a life of its workers ends at any place, and the next one goes on at the exact sample."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from dtf_lightning import BestCheckpoints
from dtf_lightning.elastic.events import WorkerEnded
from dtf_lightning.elastic.lightning.restart import membership
from dtf_lightning.elastic.lightning.run.exits import WorkerStopped
from dtf_lightning.elastic.snapshots.format import read_header
from dtf_lightning.errors import SettingsError
from support.elastic.programs.restart_life import Ending, Killed, snapshots_in
from support.elastic.run_of_one import Net, Outcome, events_of, fit

if TYPE_CHECKING:
    import lightning.pytorch as pl

LAST_STEP = 18
"""3 epochs of 6 batches."""


def lives(live: Callable[..., Any], ending: Ending, **arguments: Any) -> tuple[Net, Outcome]:
    """One life up to the ending, the next to the end; the first one's model, and what the second left."""
    with pytest.raises((WorkerStopped, RuntimeError)):
        live(ending, **arguments)
    return ending.model, live(**arguments)


ENDINGS = [
    Ending("on_train_batch_start", 0),
    Ending("on_train_batch_start", 4),
    Ending("on_before_optimizer_step", 4, "collective"),
    Ending("on_before_zero_grad", 4, "collective"),
    Ending("on_train_batch_end", 4),
    Ending("on_train_batch_end", 6),
    Ending("on_validation_batch_start", 6),
    Ending("on_validation_end", 12, "collective"),
    Ending("on_train_epoch_end", 12),
    Ending("on_train_epoch_start", 12),
]


@pytest.mark.parametrize("ending", ENDINGS, ids=str)
def test_goes_on_at_the_exact_sample(tmp_path: Path, life: Any, ending: Ending) -> None:
    """SIGTERM, or a collective that fails, at any place: bitwise the training that nothing disturbed, dropout included."""
    undisturbed = fit(tmp_path, elastic=False)
    first, second = lives(life, ending)
    assert_goes_on(first, second, undisturbed)


def assert_goes_on(first: Net, second: Outcome, undisturbed: Outcome, *, lost: int = 0) -> None:
    """The second life went on in what nothing has disturbed; the first one did at most `lost` steps that do not count."""
    assert second.trainer.global_step == LAST_STEP
    done = len(second.model.drawn)
    assert second.model.drawn == undisturbed.model.drawn[-done:]
    assert second.model.losses == undisturbed.model.losses[-done:]
    assert {name: value.tolist() for name, value in second.state().items()} == {
        name: value.tolist() for name, value in undisturbed.state().items()
    }
    begun = len(undisturbed.model.drawn) - done  # steps of the first life that count
    assert first.drawn[:begun] == undisturbed.model.drawn[:begun]
    assert len(first.drawn) - begun <= lost + 1  # the last one was drawn, not committed


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)


KILLED_AT_9 = Ending("on_before_backward", 9, "kill")
EVERY_4 = {"snapshot_every_n_steps": 4}


def test_periodic_snapshots(tmp_path: Path, life: Any) -> None:
    """Killed at step 9 with a snapshot every 4: on from step 8, with what the weights were then."""
    undisturbed = fit(tmp_path, elastic=False)
    with pytest.raises(Killed):
        life(KILLED_AT_9, snapshots=EVERY_4)
    assert [read_header(path).position.global_step for path in snapshots_in(tmp_path)] == [4, 8]
    assert_goes_on(KILLED_AT_9.model, life(snapshots=EVERY_4), undisturbed, lost=1)
    assert snapshots_in(tmp_path) == []


@pytest.mark.parametrize("how", ["flipped byte", "truncated", "both gone"])
def test_damaged_snapshots(tmp_path: Path, life: Any, caplog: pytest.LogCaptureFixture, how: str) -> None:
    """The newest is damaged: the one before is used and the log says so; without any, it says that training begins anew."""
    undisturbed = fit(tmp_path, elastic=False)
    killed = Ending("on_before_backward", 9, "kill")
    with pytest.raises(Killed):
        life(killed, snapshots=EVERY_4)
    older, newer = snapshots_in(tmp_path)
    if how == "truncated":
        newer.write_bytes(newer.read_bytes()[:-1])
    else:
        flip_a_byte(newer)
    if how == "both gone":
        flip_a_byte(older)
    with caplog.at_level("INFO", logger="dtf_lightning"):
        second = life(snapshots=EVERY_4)
    begins_at = LAST_STEP - len(second.model.drawn)
    assert begins_at == (0 if how == "both gone" else 4)
    assert second.model.losses == undisturbed.model.losses[begins_at:]
    assert str(newer) in caplog.text
    assert ("goes on at step 4" in caplog.text) == (how != "both gone")
    assert ("run 'run' begins anew at step 0, in its life 2" in caplog.text) == (how == "both gone")


def test_a_damaged_snapshot_does_not_pass_for_newer(tmp_path: Path, life: Any) -> None:
    """Back to step 4, and over step 8 again: what is written there takes the damaged one's place."""
    for ending, begins_at in (
        (Ending("on_before_backward", 9, "kill"), 0),
        (Ending("on_before_backward", 10, "kill"), 4),
    ):
        with pytest.raises(Killed):
            life(ending, snapshots=EVERY_4)
        assert ending.model.drawn == fit(tmp_path, elastic=False).model.drawn[begins_at : ending.step + 1]
        if begins_at == 0:
            flip_a_byte(snapshots_in(tmp_path)[-1])
    assert len(life(snapshots=EVERY_4).model.drawn) == LAST_STEP - 8


@pytest.mark.parametrize("kind", ["BestCheckpoints", "ModelCheckpoint"])
@pytest.mark.parametrize("damaged", [False, True])
def test_checkpoints_of_the_run(tmp_path: Path, life: Any, kind: str, damaged: bool) -> None:
    """No snapshot is left: the newest intact checkpoint that this run has written; another run's are none of its."""

    def callbacks() -> list[Any]:
        if kind == "BestCheckpoints":
            return [BestCheckpoints(every_n_steps=3, on_validation=False, recent=2, dirpath=tmp_path / "saved")]
        return [ModelCheckpoint(tmp_path / "saved", every_n_train_steps=3, save_top_k=-1)]

    undisturbed = fit(tmp_path, elastic=False)
    others = ModelCheckpoint(tmp_path / "saved", filename="others")
    fit(tmp_path, elastic=False, callbacks=[others], enable_checkpointing=True)
    with pytest.raises(Killed):
        life(Ending("on_before_backward", 8, "kill"), callbacks=callbacks(), enable_checkpointing=True)
    newest = max(
        (path for path in (tmp_path / "saved").glob("*.ckpt") if path.name != "others.ckpt"),
        key=lambda path: int(re.search(r"step=(\d+)", path.name)[1]),
    )
    if damaged:
        flip_a_byte(newest)
    second = life(callbacks=callbacks(), enable_checkpointing=True)
    begins_at = LAST_STEP - len(second.model.drawn)
    assert begins_at == (3 if damaged else 6)
    assert second.model.drawn == undisturbed.model.drawn[begins_at:]
    assert second.trainer.global_step == LAST_STEP


def test_ckpt_path_and_snapshot(tmp_path: Path, life: Any) -> None:
    """The user's `ckpt_path` is what a run begins with; after a restart a newer snapshot goes before it."""
    undisturbed = fit(tmp_path, elastic=False)
    saved = ModelCheckpoint(tmp_path / "saved", every_n_train_steps=3, save_top_k=-1)
    with pytest.raises(WorkerStopped):
        life(Ending("on_train_batch_end", 4), callbacks=[saved], enable_checkpointing=True)
    path = saved.best_model_path
    stopped = Ending("on_train_batch_end", 9)
    with pytest.raises(WorkerStopped):
        life(stopped, ckpt_path=path, run_id="another")
    assert stopped.model.drawn == undisturbed.model.drawn[3:9]
    second = life(ckpt_path=path, run_id="another")
    assert second.model.drawn == undisturbed.model.drawn[9:]


def test_what_cannot_be_saved_stops_nobody(tmp_path: Path, life: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A hook that puts something into checkpoints that cannot be pickled: said once, training goes on."""

    def save(checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = lambda: None

    with caplog.at_level("ERROR", logger="dtf_lightning"):
        outcome = life(snapshots={"snapshot_every_n_steps": 2}, model=Net(on_save_checkpoint=save))
    assert outcome.trainer.global_step == LAST_STEP
    assert len([record for record in caplog.records if "no snapshot can be taken" in record.message]) == 1
    del tmp_path


def test_snapshots_that_do_not_fit_into_memory(tmp_path: Path, life: Any) -> None:
    """They lie in the run's folder, and the next life finds them there."""
    undisturbed = fit(tmp_path, elastic=False)
    small = {"snapshot_memory": 10}
    first, second = lives(life, Ending("on_train_batch_end", 7), snapshots=small)
    assert_goes_on(first, second, undisturbed)


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch": "global", "global_batch": 9, "elastic_seed": 5},
        {"virtual_ranks": 2, "elastic_seed": 5},
    ],
    ids=["global batch", "virtual ranks"],
)
def test_plans_and_seeds_go_on(tmp_path: Path, life: Any, arguments: dict[str, Any]) -> None:
    """A global batch in micro-batches, an exact tail, virtual ranks, a seed: the life between changes nothing."""
    del tmp_path
    whole = life(**arguments)
    _, second = lives(life, Ending("on_before_backward", 3, "collective"), agent="another", **arguments)
    assert second.model.losses == whole.model.losses[-len(second.model.losses) :]
    assert second.metrics() == whole.metrics()


class Says(Callback):
    """Tells the logger something at a hook; may fail there."""

    def __init__(self, hook: str, step: int, *, fails: bool) -> None:
        self.step, self.fails, self.said = step, fails, False
        setattr(self, hook, self._say)

    def _say(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.said:
            self.said = True
            trainer.logger.log_metrics({"said": 7.0}, step=self.step)  # type: ignore[union-attr]
            if self.fails:
                raise ValueError("the user's own")


@pytest.mark.parametrize(
    ("hook", "step", "fails"),
    [("on_train_end", LAST_STEP, False), ("on_train_batch_end", 5, True)],
    ids=["end", "failure"],
)
def test_what_was_logged_last_is_in_the_log(tmp_path: Path, life: Any, hook: str, step: int, fails: bool) -> None:
    """Nothing is rolled back any more after the end of training, or a failure of this process's own: nothing is held."""
    says = Says(hook, step, fails=fails)
    logger = CSVLogger(tmp_path / "csv", flush_logs_every_n_steps=1)
    with pytest.raises(ValueError, match="the user's own") if says.fails else contextlib.nullcontext():
        life(callbacks=[says], logger=logger)
    logger.save()
    assert ",7.0" in Path(logger.log_dir, "metrics.csv").read_text()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("Trainer(precision)", {}),
        ("Trainer(max_epochs)", {}),
        ("Trainer(max_steps)", {}),
        ("hardware", {"virtual_ranks": 2}),
        ("torch threads (OMP_NUM_THREADS)", {"virtual_ranks": 2}),
    ],
)
def test_unlike_workers_are_refused(life: Any, monkeypatch: pytest.MonkeyPatch, name: str, arguments: Any) -> None:
    """A second worker that the same torchrun has started has another setting: refused by name, as in live mode."""

    def gather(_: Any, mine: Any) -> list[Any]:
        return [mine, replace(mine, settings=mine.settings | {name: "another"})]

    monkeypatch.setattr(membership.RestartMembership, "gather", gather)
    with pytest.raises(SettingsError, match=f"has {re.escape(name)}=.* rank 1 .*'another'"):
        life(**arguments)


def test_what_may_change_from_life_to_life(life: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer training, on another machine: the next life goes on in the same run."""
    with pytest.raises(WorkerStopped):
        life(Ending("on_train_batch_end", 2), virtual_ranks=2, max_epochs=1)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    second = life(virtual_ranks=2, max_epochs=2)
    assert second.trainer.global_step == 6
    assert len(second.model.drawn) == 2 * (6 - 2)


@pytest.mark.parametrize("kind", ["stop", "collective"])
def test_the_step_at_which_a_worker_stops(life: Any, caplog: pytest.LogCaptureFixture, kind: str) -> None:
    """In the validation after step 6: the log names the last committed step, and the event log the same."""
    with caplog.at_level("INFO", logger="dtf_lightning"), contextlib.suppress(WorkerStopped, RuntimeError):
        life(Ending("on_validation_batch_start", 6, kind))
    assert ("this worker stops at step 6: SIGTERM" in caplog.text) == (kind == "stop")
    assert "snapshot at step 6" in caplog.text


class Stops(Callback):
    """Asks the worker to stop at a hook, which is none of the training loops'."""

    def __init__(self, hook: str) -> None:
        setattr(self, hook, lambda trainer, *_: trainer.strategy.run.leaving("SIGTERM"))


@pytest.mark.parametrize(("hook", "num_checked"), [("on_sanity_check_start", 2), ("on_fit_start", 0)])
def test_stopped_before_training(tmp_path: Path, life: Any, hook: str, num_checked: int) -> None:
    """A worker that is stopped in set-up writes down that it ended, and why."""
    with pytest.raises(WorkerStopped):
        life(callbacks=[Stops(hook)], num_sanity_val_steps=num_checked)
    assert [(e.reason, e.step) for e in events_of(tmp_path / "run", WorkerEnded)] == [("SIGTERM", 0)]
