"""What a worker writes down about itself: every step, every second, and nothing that holds training up."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from dtf_lightning.events import CheckpointSaved, Evaluated, GenerationEntered, StepsDone, WorkerEnded, read_events
from dtf_lightning.results.store import ResultsStore
from dtf_lightning.training.time_account import Bucket, TimeAccount
from support.run_of_one import Disturbance, RunOfOne, fit

SUM = " + ".join(bucket.value for bucket in Bucket)


@pytest.fixture
def recorded(tmp_path: Path, run: RunOfOne) -> Path:
    """A run with a planned and an unplanned rescale and checkpoints."""
    disturbances = [Disturbance("training_step", 5), Disturbance("training_step", 12, "collective")]
    fit(tmp_path, elastic=True, run=run, ledger=True, disturbances=disturbances, enable_checkpointing=True)
    return tmp_path / "dtf" / "run"


def events_of(run_dir: Path, kind: type[Any]) -> list[Any]:
    return [e for path in run_dir.glob("events/*.jsonl") for e in read_events(path) if isinstance(e, kind)]


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
    """What every batch pays: well under 20 microseconds of CPU time."""
    account = TimeAccount()
    account.enter(Bucket.PRODUCTIVE)
    began = time.process_time()
    for _ in range(20_000):
        account.step_begins()
        account.data_wanted()
        account.data_there()
        account.enter(Bucket.PRODUCTIVE)
    assert (time.process_time() - began) / 20_000 < 20e-6
