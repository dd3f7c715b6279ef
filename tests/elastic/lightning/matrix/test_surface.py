"""Everything that Lightning ships has its row in the table: a new Lightning fails here until its news are sorted in."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import callbacks, strategies
from lightning.pytorch.callbacks import Callback, LearningRateFinder, Timer
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from torch.nn.parallel import DistributedDataParallel

from dtf_lightning.elastic.lightning.callback import refuse_strategy
from dtf_lightning.elastic.lightning.checks.compatibility import refuse_callbacks, refuse_finders
from dtf_lightning.errors import SettingsError
from support.elastic.matrix.scripts import SCRIPTS
from support.elastic.matrix.subjects import SUBJECTS
from support.elastic.matrix.table import CALLBACKS, DDP_ARGUMENTS, STRATEGIES, STRATEGY_CLASSES, Verdict
from support.elastic.run_of_one import Disturbance, Net, RunOfOne, assert_same_training, fit


def classes_below(package: Any) -> dict[str, type]:
    """The classes that the package's modules define."""
    modules = [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return {
        name: kind
        for module in modules
        for name, kind in vars(importlib.import_module(module)).items()
        if inspect.isclass(kind) and kind.__module__ == module
    }


def named(rows: Any, verdict: Verdict) -> list[str]:
    return sorted(name for name, row in rows.items() if row.verdict is verdict)


def test_every_callback_has_its_row() -> None:
    """Those that Lightning lists, and those of its modules that it does not."""
    kinds = classes_below(callbacks)
    assert {name for name, kind in kinds.items() if issubclass(kind, Callback)} | {
        *callbacks.__all__
    } == CALLBACKS.keys()


def test_every_strategy_has_its_row() -> None:
    assert {name for name in StrategyRegistry.available_strategies() if name != "elastic_ddp"} == STRATEGIES.keys()
    assert set(strategies.__all__) == STRATEGY_CLASSES.keys()


def test_every_argument_of_ddp_has_its_row() -> None:
    """Lightning's own, and those that it hands on to torch's DistributedDataParallel."""
    names = [
        name
        for kind in (DDPStrategy, DistributedDataParallel)
        for name in inspect.signature(kind.__init__).parameters
        if name not in ("self", "module", "kwargs")
    ]
    assert set(names) == DDP_ARGUMENTS.keys()


def test_nothing_is_neither_held_nor_refused() -> None:
    """Of strategies and their arguments: what was not tried is refused."""
    rows = [*DDP_ARGUMENTS.items(), *STRATEGIES.items(), *STRATEGY_CLASSES.items()]
    neither = {name for name, row in rows if row.verdict not in (Verdict.HELD, Verdict.REFUSED, Verdict.BASE)}
    assert neither == set()


def test_what_is_held_goes_through() -> None:
    """In a run of one, and in real processes."""
    held = set(named(CALLBACKS, Verdict.HELD))
    assert held == SUBJECTS.keys()
    assert held == {name for script in SCRIPTS.values() for name in script.subjects}
    used = {name for script in SCRIPTS.values() for name in script.strategies}
    said = {name for name, row in DDP_ARGUMENTS.items() if row.says and not row.says.startswith("`")}
    assert set(named(DDP_ARGUMENTS, Verdict.HELD)) - said <= used


@pytest.mark.parametrize("name", named(CALLBACKS, Verdict.REFUSED))
def test_refused_callbacks(name: str) -> None:
    """With what to write."""
    trainer = SimpleNamespace(callbacks=[getattr(callbacks, name)()])
    refuse = refuse_callbacks if name == "SpikeDetection" else refuse_finders
    with pytest.raises(SettingsError, match=f"^{name} ") as caught:
        refuse(trainer)
    assert ("DivergenceStopping()" if name == "SpikeDetection" else "Tuner(trainer)") in str(caught.value)


def test_refused_before_the_first_step(tmp_path: Path, run: RunOfOne) -> None:
    """The finders: tests/elastic/lightning/run/test_trials.py."""
    model = Net()
    with pytest.raises(SettingsError, match="SpikeDetection keeps its running mean"):
        fit(tmp_path, elastic=True, model=model, callbacks=[callbacks.SpikeDetection()])
    assert model.losses == []


def test_spike_detection_still_cannot_load_its_state() -> None:
    """Which is why it is refused."""
    detection = callbacks.SpikeDetection()
    with pytest.raises(AttributeError, match="running"):
        detection.load_state_dict(detection.state_dict())
    with pytest.raises(SettingsError):
        refuse_callbacks(SimpleNamespace(callbacks=[detection]))
    refuse_callbacks(SimpleNamespace(callbacks=[LearningRateFinder(), Timer()]))


@pytest.mark.parametrize("name", named(STRATEGIES, Verdict.REFUSED))
def test_refused_strategies(name: str) -> None:
    """By their names; an object that Lightning would make, without the hardware and packages that it needs for that."""
    entry = StrategyRegistry[name]
    strategy = entry["strategy"].__new__(entry["strategy"])
    if "start_method" in entry["init_params"]:
        strategy._start_method = entry["init_params"]["start_method"]
    with pytest.raises(SettingsError, match=r'Write Trainer\(strategy="ddp", callbacks=\[ElasticCallback\(\)\]\)'):
        refuse_strategy(SimpleNamespace(strategy=strategy))


@pytest.mark.parametrize("name", ["ddp_spawn", "ddp_fork"])
def test_strategies_that_start_processes(
    tmp_path: Path, run: RunOfOne, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From `Trainer(strategy=...)` on: they ask for the port that no live worker has, and are refused before they start any."""
    for variable, value in {
        "TORCHELASTIC_RUN_ID": "run",
        "MASTER_ADDR": "live-run.invalid",
        "MASTER_PORT": "none",
    }.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr("multiprocessing.process.BaseProcess.start", lambda _: pytest.fail("a process was started"))
    with pytest.raises(SettingsError, match="which start processes themselves"):
        fit(tmp_path, elastic=True, strategy=name)


@pytest.mark.parametrize("name", named(STRATEGY_CLASSES, Verdict.REFUSED))
def test_refused_strategy_classes(name: str) -> None:
    kind = getattr(strategies, name)
    with pytest.raises(SettingsError, match=rf"strategy={name}\) cannot be made elastic"):
        refuse_strategy(SimpleNamespace(strategy=kind.__new__(kind)))


@pytest.mark.parametrize(
    "name", [name for name in named(DDP_ARGUMENTS, Verdict.REFUSED) if name != "start_method"]
)  # which the names ddp_spawn and so on choose
def test_refused_arguments(tmp_path: Path, run: RunOfOne, name: str) -> None:
    """PowerSGD and its kin keep what each rank has for itself; a process group or a mesh is of one world."""
    with pytest.raises(SettingsError, match=rf"DDPStrategy\({name}=\.\.\.\).*ddp_comm_hook=fp16_compress_hook"):
        fit(tmp_path, elastic=True, strategy=DDPStrategy(**{name: 3}))


@pytest.mark.parametrize("kind", ["planned", "told"])
@pytest.mark.parametrize("name", named(STRATEGIES, Verdict.HELD))
def test_held_strategies(tmp_path: Path, run: RunOfOne, name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rescale under each name: the same training as with Lightning's default."""
    elastic = fit(
        tmp_path, elastic=True, run=run, strategy="auto" if name == "single_device" else name, max_epochs=2,
        disturbances=[Disturbance("on_train_batch_start", 4, kind)],
    )  # fmt: skip
    assert run.num_generations() == 2
    assert_same_training(elastic, fit(tmp_path, elastic=False, max_epochs=2))


def test_a_timer_counts_no_second_twice(tmp_path: Path, run: RunOfOne) -> None:
    """A validation that is done again puts callbacks back to their former state, to which the timer adds what it counts."""
    timer = Timer()
    disturbances = [Disturbance("validation_step", 6, "told")]
    begun = time.monotonic()
    fit(tmp_path, elastic=True, run=run, callbacks=[timer], max_epochs=2, disturbances=disturbances)
    start, end = timer.start_time(), timer.end_time()
    assert start is not None
    assert end is not None
    assert begun < start < end
    assert timer.time_elapsed() == pytest.approx(end - start)
