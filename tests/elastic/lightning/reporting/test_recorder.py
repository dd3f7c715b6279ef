"""What a worker writes down about itself: every step, every second, and nothing that holds training up."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from dtf_lightning.elastic.events import (
    ELASTIC_EVENTS,
    CheckpointPruned,
    CheckpointSaved,
    Diverged,
    Evaluated,
    GenerationEntered,
    LearningRateScaled,
    RolledBack,
    StepsDone,
    WorkerEnded,
)
from dtf_lightning.elastic.lightning.callbacks.adaptive_learning_rate import AdaptiveLearningRate
from dtf_lightning.elastic.lightning.callbacks.best_checkpoints import BestCheckpoints
from dtf_lightning.elastic.lightning.callbacks.divergence_stopping import DivergenceStopping
from dtf_lightning.elastic.link.messages import Happened
from dtf_lightning.elastic.observe.time_account import Bucket, TimeAccount
from dtf_lightning.elastic.reports.report_data import gather
from dtf_lightning.elastic.reports.store import ResultsStore
from support.calls import num_calls
from support.elastic.run_of_one import Disturbance, Net, RunOfOne, events_of, fit

SUM = " + ".join(bucket.value for bucket in Bucket)


@pytest.fixture
def recorded(tmp_path: Path, run: RunOfOne) -> Path:
    """A run with a planned and an unplanned rescale and checkpoints."""
    disturbances = [Disturbance("training_step", 5), Disturbance("training_step", 12, "collective")]
    fit(tmp_path, elastic=True, run=run, ledger=True, disturbances=disturbances, enable_checkpointing=True)
    return tmp_path / "dtf" / "run"


def test_events(recorded: Path) -> None:
    """Generations, steps, validations, checkpoints, the end; each once, in order."""
    assert [(e.generation, e.step) for e in events_of(recorded, GenerationEntered)] == [(1, 0), (2, 7), (3, 12)]
    assert [e.step for e in events_of(recorded, StepsDone)] == sorted(
        set(range(1, 19)) - {1, 8, 13}  # a generation's first step begins the first sample
    )
    assert all(e.loss is not None and e.rss > 1e6 and e.samples == 4 for e in events_of(recorded, StepsDone))
    assert [(e.step, list(e.metrics)) for e in events_of(recorded, Evaluated)] == [
        (6, ["val_loss"]), (12, ["val_loss"]), (18, ["val_loss"]),
    ]  # fmt: skip
    assert all(e.size > 0 for e in events_of(recorded, CheckpointSaved))
    assert [(e.reason, e.step) for e in events_of(recorded, WorkerEnded)] == [("finished", 18)]


def test_every_second_is_in_a_bucket(recorded: Path) -> None:
    """The buckets, by the monotonic clock, sum to the wall time of the worker within 1 %; what happened is in them."""
    with ResultsStore() as store:
        assert store.sync(recorded).corrupt == []
        assert store.query(f"FROM goodput WHERE abs({SUM} - wall) > 0.01 * wall").fetchall() == []
        (row,) = store.rows("FROM goodput")
        never = [b.value for b in Bucket if row[b.value] <= 0]
        assert never == []
        (lost,) = store.rows("SELECT sum(redrawn::INT) AS redrawn FROM rescales")
        assert lost["redrawn"] == 1


def test_read_only_folder(tmp_path: Path, run: RunOfOne, caplog: Any) -> None:
    """One warning; training goes on as if nothing were."""
    (tmp_path / "dtf").touch()  # root may write to a read-only folder, nobody can make one below a file
    outcome = fit(tmp_path, elastic=True, run=run)
    assert outcome.trainer.global_step == 18
    assert len([r for r in caplog.records if "the event log cannot be written" in r.message]) == 1


def test_full_disk(tmp_path: Path, run: RunOfOne, caplog: Any) -> None:
    """Every write to the log fails for want of room: one warning, and training goes on."""
    log = tmp_path / "dtf" / "run" / "events" / "n1.0.1.jsonl"
    log.parent.mkdir(parents=True)
    log.symlink_to("/dev/full")
    outcome = fit(tmp_path, elastic=True, run=run)
    assert outcome.trainer.global_step == 18
    warnings = [r.message for r in caplog.records if "the event log cannot be written" in r.message]
    assert len(warnings) == 1
    assert "No space left on device" in warnings[0]


class Clock:
    """Moved by hand; the wall clock runs along."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now

    wall = monotonic


def test_account() -> None:
    """Start-up from the process's start, steps productive until they are undone, data waited for."""
    clock = Clock()
    account = TimeAccount(clock, age=7)
    clock.now += 1
    account.enter(Bucket.PRODUCTIVE)
    clock.now += 2
    account.charge(account.current)
    account.step_begins()
    account.data_wanted()
    clock.now += 3
    account.data_there()
    clock.now += 4
    account.enter(Bucket.RESCALE_UNWIND)
    account.step_undone()
    clock.now += 5
    spent = {name: seconds for name, seconds in account.seconds().items() if seconds}
    assert spent == {"startup": 8, "productive": 2, "data_wait": 3, "lost": 4, "rescale_unwind": 5}
    assert sum(spent.values()) == account.wall()


def test_cost_of_a_step() -> None:
    """What every batch pays: few function calls."""
    account = TimeAccount()
    account.enter(Bucket.PRODUCTIVE)

    def batches() -> None:
        for _ in range(1000):
            account.step_begins()
            account.data_wanted()
            account.data_there()
            account.enter(Bucket.PRODUCTIVE)

    assert num_calls(batches) <= 30 * 1000


class Diverging(Net):
    """Its loss is a NaN at one step."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * torch.nan if self.trainer.global_step == 9 else loss


def test_events_of_callbacks(tmp_path: Path, run: RunOfOne) -> None:
    """Checkpoints of `BestCheckpoints` and what it prunes, a divergence and its rollback, factors of the learning rate:
    in the log, and the important ones at the agent."""
    checkpoints = BestCheckpoints(best=0, recent=2, every_n_steps=3, on_validation=False, dirpath=tmp_path / "saved")
    divergence = DivergenceStopping(action="rollback", check_every=1)
    rule = AdaptiveLearningRate("linear", reference_world_size=2)
    fit(tmp_path, elastic=True, run=run, model=Diverging(), learning_rate=rule, callbacks=[checkpoints, divergence],
        enable_checkpointing=True)  # fmt: skip
    run_dir = tmp_path / "dtf" / "run"
    saved = events_of(run_dir, CheckpointSaved)
    assert [event.step for event in saved] == [3, 6, 9, 12, 15, 18]
    assert all(event.size > 0 and event.seconds > 0 for event in saved)
    pruned = [Path(event.path).name for event in events_of(run_dir, CheckpointPruned)]
    assert sorted(pruned) == sorted(Path(event.path).name for event in saved[:-2])
    (diverged,) = events_of(run_dir, Diverged)
    assert (diverged.divergence, diverged.onset, diverged.action) == ("non-finite", 10, "rollback")
    (back,) = events_of(run_dir, RolledBack)
    assert back.done
    assert "step 6" in back.reason
    (scaled,) = events_of(run_dir, LearningRateScaled)
    assert (scaled.rule, scaled.factors) == ("linear", {"0": 0.5})
    told = [message.event["kind"] for message in run.heard if isinstance(message, Happened)]
    assert set(told) == {"checkpoint_saved", "diverged", "rolled_back", "learning_rate_scaled", "evaluated"}
    with ResultsStore() as store:
        assert store.sync(run_dir).corrupt == []
        assert store.query("SELECT count(*) FROM checkpoints WHERE pruned IS NULL").fetchall() == [(2,)]
        texts = [event["text"] for event in gather(store, "run")["events"]]
    assert any(text.startswith("training diverges (non-finite, step 10 to 10, rollback)") for text in texts)


def test_every_kind_has_words() -> None:
    """Of the important ones: a sentence, not its name."""
    values = {
        "str": "x",
        "int": 1,
        "float": 0.5,
        "bool": False,
        "tuple[str, ...]": ("x",),
        "dict[str, float]": {"y": 1.0},
    }
    for kind in ELASTIC_EVENTS.important:
        fields = {f.name: values[str(f.type)] for f in dataclasses.fields(ELASTIC_EVENTS.kinds[kind])}
        assert ELASTIC_EVENTS.kinds[kind](**fields).describe() != kind
