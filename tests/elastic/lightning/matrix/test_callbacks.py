"""Lightning's callbacks in a run of one: after rescales at every place all is as if plain Lightning had trained.

Joins and leaves are the same to whoever stays: a stop at a boundary. `tests/elastic/process/test_matrix.py` has what is not
the same: who comes, and who is rank 0. By default every second callback is disturbed in the one way, the others in the other.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from support.cells import each_row_once
from support.elastic.matrix.subjects import SUBJECTS, Subject, state_of
from support.elastic.matrix.table import PLACES
from support.elastic.run_of_one import Disturbance, Outcome, RunOfOne, assert_same_weights, fit

KINDS = ("planned", "told")
"""What a survivor sees of a join and a leave, and of a death."""
HOOKS = {
    "step": "on_before_backward", "validation": "validation_step", "epoch end": "on_train_epoch_end",
    "save": "on_save_checkpoint",
}  # fmt: skip


@dataclass
class Seen:
    """What is left of a fit."""

    outcome: Outcome
    callbacks: list[dict[str, Any]]
    logged: list[dict[str, str]]
    files: set[str]


def disturbances(subject: Subject, kind: str, places: tuple[str, ...]) -> list[Disturbance]:
    """One at each place: in the first epoch, at the end of the first, the second and the third."""
    first, second, third, _ = subject.epoch_ends
    steps = {"step": 1, "validation": first, "epoch end": second, "save": third}
    return [Disturbance(HOOKS[place], steps[place], kind) for place in places]


def train(folder: Path, subject: Subject, **arguments: Any) -> Seen:
    callbacks = subject.make(folder)
    everyone: list[Callback] = [*callbacks, ModelCheckpoint(folder / "every", save_top_k=-1)]
    outcome = fit(
        folder,
        model=subject.model(),
        callbacks=everyone,
        logger=CSVLogger(folder, name="", version="log"),
        max_epochs=len(subject.epoch_ends),
        **{"enable_checkpointing": True, **subject.trainer, **arguments},
    )
    rows = [
        {name: value for name, value in row.items() if value and not name.startswith(subject.logs_own or ("\0",))}
        for row in csv.DictReader((folder / "log/metrics.csv").open())
    ]
    paths = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return Seen(
        outcome=outcome,
        callbacks=[_without_folder(state_of(callback, subject.own), folder) for callback in callbacks],
        logged=[row for row in rows if row.keys() - {"epoch", "step"}],
        files={str(path).replace("-v1", "") for path in paths if path.parts[0] != "dtf"},
    )


def _without_folder(value: Any, folder: Path) -> Any:
    if isinstance(value, dict):
        return {_without_folder(key, folder): _without_folder(part, folder) for key, part in value.items()}
    if isinstance(value, list):
        return [_without_folder(part, folder) for part in value]
    # A save that runs again finds the file of the first one.
    return value.replace(str(folder), "").replace("-v1", "") if isinstance(value, str) else value


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Seen]:
    """What plain Lightning comes to."""
    return cache(lambda name: train(tmp_path_factory.mktemp("plain"), SUBJECTS[name], elastic=False))


def compare(folder: Path, run: RunOfOne, name: str, kind: str, places: tuple[str, ...], undisturbed: Seen) -> None:
    subject = SUBJECTS[name]
    seen = train(folder, subject, elastic=True, run=run, disturbances=disturbances(subject, kind, places))
    assert run.num_generations() == 1 + len(places)
    assert_same_weights(seen.outcome, undisturbed.outcome)
    for what in ("global_step", "current_epoch", "should_stop", "accumulate_grad_batches"):
        assert getattr(seen.outcome.trainer, what) == getattr(undisturbed.outcome.trainer, what), what
    assert optimizers(seen.outcome) == optimizers(undisturbed.outcome)
    assert seen.callbacks == undisturbed.callbacks
    assert seen.outcome.metrics().keys() == undisturbed.outcome.metrics().keys()
    assert seen.logged == undisturbed.logged
    assert seen.files == undisturbed.files


def optimizers(outcome: Outcome) -> list[Any]:
    trainer = outcome.trainer
    schedulers = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]
    return [repr(optimizer.state_dict()) for optimizer in trainer.optimizers] + [repr(state) for state in schedulers]


@pytest.mark.parametrize(("name", "kind"), each_row_once(SUBJECTS, KINDS, "{}-{}".format))
def test_as_undisturbed(tmp_path: Path, run: RunOfOne, plain: Callable[[str], Seen], name: str, kind: str) -> None:
    """One fit through rescales at every place: weights, optimizer, schedulers, callback, log and files are plain Lightning's."""
    compare(tmp_path, run, name, kind, PLACES, plain(name))
