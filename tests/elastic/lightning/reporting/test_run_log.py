"""One log for a run: nothing twice, nothing lost, no second folder, whoever writes it."""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch.utils.tensorboard import SummaryWriter

from dtf_lightning.elastic.lightning.callbacks.adaptive_learning_rate import AdaptiveLearningRate
from dtf_lightning.elastic.lightning.reporting import run_log, tensorboard_log
from dtf_lightning.elastic.lightning.reporting.rank_zero import set_rank_zero
from dtf_lightning.elastic.lightning.reporting.run_log import RunLog
from dtf_lightning.elastic.link.worker_link import WorkerLink
from dtf_lightning.elastic.rules.resume import LoopPhase
from dtf_lightning.errors import RunAborted
from support.calls import num_calls
from support.elastic.run_of_one import Disturbance, RunOfOne, fit

Curves = dict[str, list[tuple[int, float]]]


def read(folder: Path, *, purge: bool = False) -> EventAccumulator:
    """As TensorBoard reads it; without `purge` everything that is in the files, also what TensorBoard would not show."""
    guidance = {"scalars": 0, "tensors": 0}
    return EventAccumulator(str(folder), size_guidance=guidance, purge_orphaned_data=purge).Reload()


def curves(events: EventAccumulator) -> Curves:
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def texts(events: EventAccumulator) -> list[tuple[int, str]]:
    return [
        (e.step, e.tensor_proto.string_val[0].decode())
        for e in events.Tensors(f"{tensorboard_log.RESCALES}/text_summary")
    ]


PLACES = [
    ("training_step", 7), ("after_step", 4), ("on_train_batch_end", 9), ("on_before_backward", 5),
    ("on_validation_start", 6), ("validation_step", 12), ("on_validation_end", 6), ("on_train_epoch_end", 12),
    ("on_train_epoch_start", 6),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["planned", "told"])
def test_tensorboard(tmp_path: Path, start_run: Callable[..., Any], kind: str) -> None:
    """Rescales in every place, all in one run: each curve of the user's is that of an undisturbed run, point by point;
    the elastic ones and a text per generation stand beside them, on one page."""
    found = []
    for name, elastic in (("plain", False), ("elastic", True)):
        logger = TensorBoardLogger(tmp_path, name="", version=name)
        run = start_run() if elastic else None
        disturbances = [Disturbance(place, step, kind) for place, step in PLACES] if elastic else []
        callbacks = [LearningRateMonitor("step")]
        fit(tmp_path, elastic=elastic, logger=logger, run=run, disturbances=disturbances, callbacks=callbacks)
        found.append(read(tmp_path / name))
    plain, elastic_curves = curves(found[0]), curves(found[1])
    ours = {tag: elastic_curves.pop(tag) for tag in list(elastic_curves) if tag.startswith("elastic/")}
    assert elastic_curves == plain
    for tag, points in ours.items():
        assert all(earlier < later for (earlier, _), (later, _) in pairwise(points)), tag
    assert ours["elastic/generation"][-1][0] == 17
    num_generations = int(ours["elastic/generation"][-1][1])
    assert num_generations >= 2  # planned ones that come close together are one
    assert [step for step, _ in ours["elastic/pause"]] == [step for step, _ in texts(found[1])]
    told = "\n\n".join(text for _, text in texts(found[1]))
    assert re.findall(r"\*\*generation (\d+)\*\*: 1 workers at step \d+\. test", told) == [
        str(number) for number in range(1, num_generations + 1)
    ]
    assert "pause " in told
    assert all(0 <= value <= 1 for _, value in ours["elastic/goodput"])
    assert {value for _, value in ours["elastic/global_batch"]} == {4.0}
    (layout,) = found[1].Tensors("custom_scalars__config__")
    (category,) = layout_pb2.Layout.FromString(layout.tensor_proto.string_val[0]).category
    assert {tag for chart in category.chart for tag in chart.multiline.tag} == set(ours)


def test_learning_rate_factor(tmp_path: Path, run: RunOfOne) -> None:
    """`elastic/lr_factor` is the rule's."""
    logger = TensorBoardLogger(tmp_path, name="", version="log")
    rule = AdaptiveLearningRate("linear", reference_world_size=4)
    fit(tmp_path, elastic=True, logger=logger, learning_rate=rule, max_epochs=1)
    assert {value for _, value in curves(read(tmp_path / "log"))["elastic/lr_factor"]} == {0.25}


@pytest.fixture
def logger(tmp_path: Path) -> Iterator[TensorBoardLogger]:
    """Writes into `tmp_path` itself."""
    made = TensorBoardLogger(tmp_path, name="", version="")
    yield made
    if made._experiment is not None:
        made._experiment.close()


class LoopsAt:
    """As much of a trainer as a log looks at: where the loops stand, and the loggers."""

    checkpoint_callbacks = ()

    def __init__(self, step: int, *loggers: Any) -> None:
        self.fit_loop = self.epoch_loop = self
        self._batches_that_stepped = step
        self.loggers = loggers


def of_another_rank(step: int, logger: Any, steps: range) -> tuple[RunLog, Any]:
    """The log of a worker that has seen these steps and stands at `step`; it is about to become rank 0."""
    trainer = LoopsAt(step, logger)
    other = RunLog()
    other.attach(trainer)
    other.holding = True
    set_rank_zero(1)
    for seen in steps:
        logger.log_metrics({"loss": float(seen)}, step=seen)
    other.commit()
    set_rank_zero(0)
    return other, trainer


def writer(folder: Path, steps: range, unflushed: range = range(0)) -> SummaryWriter:
    """What a rank 0 that is killed leaves behind: it has logged `unflushed` too, in vain."""
    left = SummaryWriter(str(folder), flush_secs=10_000)
    for step in steps:
        left.add_scalar("loss", float(step), step)
    left.flush()
    file = left.file_writer.event_writer._general_file_writer
    file.write = lambda data: None
    for step in unflushed:
        left.add_scalar("loss", float(step), step)
    return left


def test_unflushed_values_are_not_lost(tmp_path: Path, logger: Any) -> None:
    """What the dead rank 0 had in memory only comes from the memory of its successor; what it had written, does not."""
    left = writer(tmp_path, range(10), unflushed=range(10, 14))
    log, trainer = of_another_rank(14, logger, range(14))
    log.take_over(trainer, LoopPhase.BATCH)
    assert curves(read(tmp_path)) == {"loss": [(step, float(step)) for step in range(14)]}
    left.close()


@pytest.mark.parametrize(("phase", "until"), [(LoopPhase.BATCH, 9), (LoopPhase.ADVANCE_END, 10)])
def test_undone_step_is_void(tmp_path: Path, logger: Any, phase: LoopPhase, until: int) -> None:
    """The dead rank 0 had logged steps that no survivor has made: TensorBoard sees them once, as they are done again."""
    left = writer(tmp_path, range(11))
    step = 9
    log, trainer = of_another_rank(step, logger, range(until))
    log.take_over(trainer, phase)
    shown = curves(read(tmp_path, purge=True))["loss"]
    assert shown == [(step, float(step)) for step in range(until)]
    left.close()


@pytest.mark.parametrize("torn", [0, 1, 5])
def test_end_of_a_long_file(tmp_path: Path, logger: Any, torn: int) -> None:
    """Of a file that is longer than what is looked at, with or without a torn last record: nothing twice."""
    steps = tensorboard_log.TAIL // 40
    left = writer(tmp_path, range(steps))
    left.close()
    (path,) = tmp_path.glob("events*")
    assert path.stat().st_size > tensorboard_log.TAIL + 1000
    path.write_bytes(path.read_bytes()[: -torn or None])
    log, trainer = of_another_rank(steps, logger, range(steps - 50, steps))
    log.take_over(trainer, LoopPhase.BATCH)
    assert [step for step, _ in curves(read(tmp_path))["loss"]] == list(range(steps))


def test_new_file_sorts_last(tmp_path: Path, logger: Any) -> None:
    """The dead rank 0's clock was ahead: TensorBoard would read the new file first."""
    writer(tmp_path, range(5)).close()
    (path,) = tmp_path.glob("events*")
    path.rename(path.with_name(f"events.out.tfevents.{int(time.time()) + 3600:010d}.other.1.0"))
    log, trainer = of_another_rank(5, logger, range(5))
    log.take_over(trainer, LoopPhase.BATCH)
    log._log(0, {"loss": 5.0}, 5)
    log.commit()
    log.flush()
    assert [step for step, _ in curves(read(tmp_path))["loss"]] == list(range(6))
    assert sorted(tmp_path.glob("events*"))[-1].stat().st_size > 0


@pytest.mark.parametrize("torn", [False, True])
def test_csv(tmp_path: Path, torn: bool) -> None:
    """A new rank 0 keeps the rows, removes those of undone steps and half a row, and adds what is missing."""
    path = tmp_path / "metrics.csv"
    path.write_text(
        "loss,step\n" + "".join(f"{float(step)},{step}\n" for step in range(8)) + "8.0,8"[: 3 if torn else 0]
    )
    log, trainer = of_another_rank(7, CSVLogger(tmp_path, name="", version=""), range(2, 7))
    log.take_over(trainer, LoopPhase.BATCH)
    for step in (7, 8):
        log._log(0, {"loss": float(step), "other": 1.0}, step)
    log.commit()
    trainer.loggers[0].save()
    assert rows_of(path) == [(step, float(step)) for step in range(9)]


def rows_of(path: Path) -> list[tuple[int, float]]:
    with path.open(newline="") as file:
        return [(int(row["step"]), float(row["loss"])) for row in csv.DictReader(file)]


@pytest.mark.parametrize("last_key", ["loss", "other"])
@pytest.mark.parametrize("num_saved", [0, 4])
def test_csv_of_a_leaver_that_is_slow(tmp_path: Path, num_saved: int, last_key: str) -> None:
    """It writes what it has in memory when its successor has taken over already, and after that: every row is there once."""
    leaver, trainer = RunLog(), LoopsAt(7, CSVLogger(tmp_path, name="", version=""))
    leaver.attach(trainer)
    (logger,) = trainer.loggers
    for step in range(7):
        logger.log_metrics({"loss": float(step), **({last_key: 6.0} if step == 6 else {})}, step=step)
        if step + 1 == num_saved:
            logger.save()
    assert (tmp_path / "metrics.csv").exists() is (num_saved > 0)
    successor, its_trainer = of_another_rank(7, CSVLogger(tmp_path, name="", version=""), range(7))
    successor.take_over(its_trainer, LoopPhase.BATCH)
    leaver.flush()
    successor._log(0, {"loss": 7.0}, 7)
    successor.commit()
    successor.flush()
    logger.finalize("success")
    assert rows_of(tmp_path / "metrics.csv") == [(step, float(step)) for step in range(8)]


def test_csv_is_written_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What rank 0 has in memory only is no more than what its successor has kept."""
    monkeypatch.setattr(run_log, "FLUSH_SECONDS", 0.0)
    log, trainer = RunLog(), LoopsAt(0, CSVLogger(tmp_path, name="", version=""))
    log.attach(trainer)
    log.holding = True
    for step in range(3):
        trainer.loggers[0].log_metrics({"loss": float(step)}, step=step)
        log.commit()
    assert rows_of(tmp_path / "metrics.csv") == [(step, float(step)) for step in range(3)]


def test_resumed_run_goes_on_in_its_log(tmp_path: Path, start_run: Callable[..., Any]) -> None:
    """A run is started again from its checkpoint: the same folder, no `version_1`, no step twice."""

    def train(**arguments: Any) -> Any:
        start_run()
        loggers = [TensorBoardLogger(tmp_path, name="tb"), CSVLogger(tmp_path, name="csv")]
        checkpoints = ModelCheckpoint(every_n_train_steps=4, save_top_k=-1, filename="{step}")
        return fit(tmp_path, elastic=True, logger=loggers, callbacks=[checkpoints], enable_checkpointing=True,
                   model=None, **arguments)  # fmt: skip

    first = train(max_epochs=2)
    folder = Path(first.trainer.checkpoint_callback.dirpath)
    assert folder.parent == tmp_path / "tb/version_0"
    second = train(max_epochs=3, ckpt_path=folder / "step=8.ckpt")
    assert Path(second.trainer.checkpoint_callback.dirpath) == folder
    for name in ("tb", "csv"):
        assert [path.name for path in (tmp_path / name).iterdir()] == ["version_0"]
    shown = curves(read(tmp_path / "tb/version_0", purge=True))
    assert [step for step, _ in shown["loss_step"]] == list(range(18))
    assert [step for step, _ in shown["val_loss"]] == [5, 11, 17]
    with (tmp_path / "csv/version_0/metrics.csv").open(newline="") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row["loss_step"]]
    assert steps == list(range(18))


def test_named_log_is_resumed(tmp_path: Path, start_run: Callable[..., Any]) -> None:
    """With a version of the user's: what was logged behind the checkpoint is void, no step is twice."""
    for epochs, checkpoint in ((2, None), (3, tmp_path / "step=8.ckpt")):
        start_run()
        checkpoints = ModelCheckpoint(tmp_path, every_n_train_steps=8, save_top_k=-1, filename="{step}")
        logger = TensorBoardLogger(tmp_path, name="", version="mine")
        fit(tmp_path, elastic=True, logger=logger, callbacks=[checkpoints], enable_checkpointing=True,
            max_epochs=epochs, ckpt_path=checkpoint)  # fmt: skip
    shown = curves(read(tmp_path / "mine", purge=True))
    assert [step for step, _ in shown["loss_step"]] == list(range(18))


def test_another_training_gets_another_log(tmp_path: Path, start_run: Callable[..., Any]) -> None:
    """The same run id from the start, without a checkpoint: a log of its own, as in plain Lightning."""
    for _ in range(2):
        start_run()
        fit(tmp_path, elastic=True, logger=TensorBoardLogger(tmp_path, name="tb"), max_epochs=1)
    assert sorted(path.name for path in (tmp_path / "tb").iterdir()) == ["version_0", "version_1"]


def csv_steps(logger: CSVLogger, column: str = "loss_step") -> tuple[int, ...]:
    with Path(logger.log_dir, "metrics.csv").open(newline="") as file:
        return tuple(int(row["step"]) for row in csv.DictReader(file) if row.get(column))


def test_csv_is_on_the_disk_before_another_may_write(
    tmp_path: Path, run: RunOfOne, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planned rescale at an epoch's end: the means' row is written before the next generation can begin, not at the end."""
    logger, found = CSVLogger(tmp_path), []
    ready = WorkerLink.ready

    def look_and_be_ready(*args: Any, **kwargs: Any) -> Any:
        if Path(logger.log_dir, "metrics.csv").exists():
            found.append((csv_steps(logger), csv_steps(logger, "loss_epoch")))
        return ready(*args, **kwargs)

    monkeypatch.setattr(WorkerLink, "ready", look_and_be_ready)
    fit(tmp_path, elastic=True, run=run, disturbances=[Disturbance("training_step", 4)], logger=logger)
    assert found == [(tuple(range(6)), (5,))]


def test_csv_of_a_failing_rank_0(tmp_path: Path, run: RunOfOne, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails by itself: its rows are written before it tells the others, who go on in the same file."""
    logger, found = CSVLogger(tmp_path), []
    monkeypatch.setattr(WorkerLink, "dying", lambda *_, **__: found.append(csv_steps(logger)))

    class Fails(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 5:
                raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        fit(tmp_path, elastic=True, run=run, logger=logger, callbacks=[Fails()])
    assert found == [tuple(range(5))]


class Aborting(Callback):
    """Has the leader end the run at step 5."""

    def __init__(self, run: RunOfOne) -> None:
        self.run = run

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 5:
            self.run.abort(trainer.strategy.run.membership.link)


def test_nothing_is_held_after_an_abort(tmp_path: Path, run: RunOfOne) -> None:
    """The leader has ended the run, nothing is done again: what the script tells its logger then is in the log."""
    logger = CSVLogger(tmp_path / "csv", flush_logs_every_n_steps=1)
    with pytest.raises(RunAborted, match="on purpose"):
        fit(tmp_path, elastic=True, logger=logger, callbacks=[Aborting(run)])
    logger.log_metrics({"said": 7.0}, step=5)
    logger.save()
    assert ",7.0" in Path(logger.log_dir, "metrics.csv").read_text()


def test_cost_of_a_step(tmp_path: Path) -> None:
    """What a step pays beyond the logger itself: few function calls, and no more of them as the run goes on."""
    logger = CSVLogger(tmp_path)
    log = RunLog()
    logger.log_metrics = lambda *_: None
    log.attach(LoopsAt(0, logger))
    log.holding = True

    def steps(numbers: range) -> None:
        for step in numbers:
            logger.log_metrics({"loss": 1.0, "epoch": 0}, step=step)
            log.commit()

    assert num_calls(lambda: steps(range(1000))) <= 20 * 1000
    assert num_calls(lambda: steps(range(1000, 2000))) <= 20 * 1000
