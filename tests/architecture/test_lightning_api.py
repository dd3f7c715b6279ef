"""Lightning's private methods that `elastic/lightning/loops.py` overrides are those that it was written against."""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import re
from pathlib import Path

import lightning
import pytest
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

WRITTEN_AGAINST = "2.6.6"

# The source of each method in WRITTEN_AGAINST, the first 16 digits of its SHA-256.
OVERRIDDEN = {
    "_FitLoop.run": "32914184815883f4",
    "_FitLoop.setup_data": "77855202334401d5",
    "_FitLoop.on_run_start": "3d32268fe5be6c42",
    "_FitLoop.on_advance_start": "eb489cd65209ec2b",
    "_FitLoop.on_advance_end": "a87ac6110b43c573",
    "_TrainingEpochLoop.on_run_start": "4993b0dcc52bf919",
    "_TrainingEpochLoop.advance": "c7555c016027bd73",
    "_TrainingEpochLoop.on_advance_end": "2d1ddaa4e45ef5c6",
    "_TrainingEpochLoop._broadcast_sigterm_tensor": "d4e504c3f7d8bcb5",
    "_TrainingEpochLoop._accumulated_batches_reached": "4be46e19d4f0c5f9",
    "_AutomaticOptimization._make_zero_grad_fn": "0f9b56ff1dc1a3ba",
}

# Not overridden, but the overrides do what these do: a change there is to be followed.
FOLLOWED = {
    "_FitLoop.reset": "ee34bf3662fe2739",
    "_FitLoop.update_restart_stage": "f0a84f5e08328f31",
    "_TrainingEpochLoop.run": "e8393a2170ccbe01",
    "_TrainingEpochLoop.reset": "0014631aabe0ac52",
    "_TrainingEpochLoop.update_restart_stage": "96c425ee64bd35c9",
    "_TrainingEpochLoop._should_check_val_fx": "cf0916b12e18a2cc",
    "_TrainingEpochLoop.update_lr_schedulers": "7ea198b469a428e7",
}


OWNERS = {owner.__name__: owner for owner in (_FitLoop, _TrainingEpochLoop, _AutomaticOptimization)}


def method(name: str):
    owner, attribute = name.split(".")
    return getattr(OWNERS[owner], attribute)


def digest(name: str) -> str:
    return hashlib.sha256(inspect.getsource(method(name)).encode()).hexdigest()[:16]


@pytest.mark.parametrize("name", [*OVERRIDDEN, *FOLLOWED])
def test_same_as_when_written(name):
    """A new Lightning that changes one of them needs a look at our override, then a new digest here."""
    expected = {**OVERRIDDEN, **FOLLOWED}[name]
    assert digest(name) == expected, (
        f"Lightning {lightning.__version__} changed {name} since {WRITTEN_AGAINST}. Compare the two, put ElasticFitLoop "
        f"or ElasticEpochLoop in src/dtf_lightning/elastic/lightning/loops.py right, then write {digest(name)!r} here."
    )


def test_docstring_lists_the_overrides():
    """The list at the top of loops.py, the classes and this file name the same methods."""
    source = Path(importlib.util.find_spec("dtf_lightning.elastic.lightning.loops").origin).read_text()
    docstring = source.split('"""')[1]
    listed = {
        f"{owner}.{name}"
        for owner, names in re.findall(r"\* `(\w+)`: ([^;.]*)[;.]", docstring)
        for name in re.findall(r"`(\w+)`", names)
    }
    from dtf_lightning.elastic.lightning import loops

    defined = {
        f"{owner.__name__}.{name}"
        for cls, owner in (
            (loops.ElasticFitLoop, _FitLoop),
            (loops.ElasticEpochLoop, _TrainingEpochLoop),
            (loops.ElasticOptimization, _AutomaticOptimization),
        )
        for name in vars(cls)
        if not name.startswith("__") and callable(vars(cls)[name]) and hasattr(owner, name)
    }
    assert listed == defined == set(OVERRIDDEN)
