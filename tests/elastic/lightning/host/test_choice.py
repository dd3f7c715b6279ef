"""Which of Lightning's two packages a process uses."""

from __future__ import annotations

import os
from typing import Any

import pytest

from dtf_lightning.elastic.lightning.host.choice import (
    LIGHTNING,
    NAMES,
    PYTORCH_LIGHTNING,
    choose,
    named_in,
    package_of,
    refuse_another,
)
from dtf_lightning.errors import SettingsError
from support.fork_server import ForkServer

OLD, NEW = "import pytorch_lightning as pl", "import lightning as L"


@pytest.mark.parametrize(
    ("source", "names"),
    [
        (NEW, {LIGHTNING}),
        ("from lightning.pytorch.callbacks import Callback", {LIGHTNING}),
        (OLD, {PYTORCH_LIGHTNING}),
        ("def f():\n    from pytorch_lightning import Trainer", {PYTORCH_LIGHTNING}),
        (f"{OLD}\n{NEW}", set(NAMES)),
        ("import lightning_utilities, lightningly; from . import lightning", set()),
        ("no python at all", set()),
    ],
)
def test_what_a_source_names(source, names):
    assert named_in(source) == names


@pytest.mark.parametrize(
    ("sources", "loaded", "installed", "chosen"),
    [
        ([OLD], [], NAMES, PYTORCH_LIGHTNING),  # our import stands above it
        ([NEW], [], NAMES, LIGHTNING),
        ([OLD], [LIGHTNING], NAMES, PYTORCH_LIGHTNING),  # a library of the script's has loaded the other
        (["", OLD], [], NAMES, PYTORCH_LIGHTNING),  # a module of the script imports us, the script Lightning
        (["", OLD], [LIGHTNING], NAMES, LIGHTNING),
        ([f"{OLD}\n{NEW}", OLD], [], NAMES, PYTORCH_LIGHTNING),
        ([""], [PYTORCH_LIGHTNING], NAMES, PYTORCH_LIGHTNING),
        ([""], [], NAMES, LIGHTNING),
        ([""], [], [PYTORCH_LIGHTNING], PYTORCH_LIGHTNING),
        ([NEW], [], [PYTORCH_LIGHTNING], PYTORCH_LIGHTNING),  # it will fail by itself, with Python's own words
    ],
)
def test_chosen(sources, loaded, installed, chosen):
    """The importer's own imports first, then what is loaded, then its importers, then what there is."""
    assert choose(sources, loaded, installed) == chosen


def test_neither_is_installed():
    with pytest.raises(ImportError, match="pip install lightning"):
        choose([NEW], [], [])


class Trainer:
    """Of one of the packages, as its class says."""

    def __init__(self, *callbacks: Any, home: str) -> None:
        type(self).__module__ = home
        self.callbacks, self.loggers = callbacks, []


class Stranger:
    """A callback of the other package."""


class Own(Stranger):
    """A user's, derived from it."""


Stranger.__module__ = "pytorch_lightning.callbacks.model_checkpoint"


def test_a_mixed_trainer_is_refused():
    """The error names the callback and the line to change; so does one for a trainer of the other package."""
    for callback in (Stranger(), Own()):
        assert package_of(callback) == PYTORCH_LIGHTNING
        with pytest.raises(
            SettingsError,
            match=rf"{type(callback).__name__} is pytorch_lightning's.*from lightning.pytorch.callbacks import Stranger",
        ):
            refuse_another(Trainer(callback, home="lightning.pytorch.trainer.trainer"), LIGHTNING)
    with pytest.raises(SettingsError, match=r"this Trainer is pytorch_lightning.*`import pytorch_lightning` above"):
        refuse_another(Trainer(home="pytorch_lightning.trainer.trainer"), LIGHTNING)
    refuse_another(Trainer(object(), home="lightning.pytorch.trainer.trainer"), LIGHTNING)


SCRIPT = """
import sys, warnings
warnings.simplefilter("ignore")

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocked())
from dtf_lightning import AdaptiveLearningRate, BestCheckpoints, DivergenceStopping, ElasticCallback, ElasticDDPStrategy
{imported}
from {package}.demos.boring_classes import BoringModel

best = BestCheckpoints("train_loss", mode="min", dirpath={folder!r})
trainer = {package}.Trainer(
    max_epochs=1, limit_train_batches=2, limit_val_batches=0, logger=False, enable_progress_bar=False,
    enable_model_summary=False, accelerator="cpu", callbacks=[ElasticCallback(), best, DivergenceStopping()],
)
assert all(isinstance(one, {package}.callbacks.Callback) for one in trainer.callbacks)
assert best in trainer.checkpoint_callbacks
assert issubclass(ElasticDDPStrategy, {package}.strategies.DDPStrategy)
trainer.fit(BoringModel())
assert trainer.global_step == 2
loaded = {{name.partition(".")[0] for name in sys.modules}} & {{"lightning", "pytorch_lightning"}}
print(*sorted(loaded))
"""


CASES = {
    "only the old name there": (
        "import pytorch_lightning",
        "pytorch_lightning",
        {"lightning", "lightning_fabric_none"},
    ),
    "the old name": ("import pytorch_lightning", "pytorch_lightning", set()),
    "only the new name there": (
        "import lightning.pytorch",
        "lightning.pytorch",
        {"pytorch_lightning", "lightning_fabric"},
    ),
}


@pytest.mark.process
def test_callbacks_in_a_script(tmp_path, monkeypatch):
    """Our import stands above Lightning's; ours derive from the script's package, and the other is never loaded.

    The scripts are forked from a process that has loaded what they have in common, and neither package.
    """
    monkeypatch.chdir(tmp_path)
    server = ForkServer(("torch", "torchmetrics"))
    try:
        for case, (imported, package, blocked) in CASES.items():
            script, printed = tmp_path / f"{case}.py", tmp_path / f"{case}.txt"
            script.write_text(
                SCRIPT.format(imported=imported, package=package, blocked=blocked, folder=str(tmp_path / case))
            )
            with printed.open("wb") as file:
                program = server.start([str(script)], os.environ, file.fileno())
            assert program.wait(300) == 0, f"{case}: {printed.read_text()[-3000:]}"
            assert printed.read_text().splitlines()[-1] == package.partition(".")[0], case
    finally:
        server.close()
