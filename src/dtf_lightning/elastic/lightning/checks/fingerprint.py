"""A fingerprint holds what must be the same on all nodes of a run, in any world; newcomers are compared by it."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dtf_lightning.elastic.lightning.host.names import VERSION
from dtf_lightning.elastic.lightning.run.settings import RunSettings

if TYPE_CHECKING:
    import lightning.pytorch as pl


def script_path() -> Path | None:
    """Return the path of the training script, absolute; `None` where Python runs none."""
    given = Path(sys.argv[0]) if sys.argv and sys.argv[0] else None
    if given is None or given.is_absolute():
        return given
    # Python makes this one absolute when it begins; a script that changes its directory leaves the other one wrong.
    begun_as = getattr(sys.modules["__main__"], "__file__", None)
    return Path(begun_as or given).absolute()


def settings_fingerprint(trainer: pl.Trainer) -> dict[str, str]:
    """Return the settings that do not depend on the world, by name, as text."""
    script = script_path()
    content = script.read_bytes() if script is not None and script.is_file() else b""
    return {
        "script": script.name if script is not None else "",
        "script content (SHA-256)": hashlib.sha256(content).hexdigest()[:16],
        "torch version": torch.__version__,
        "lightning version": VERSION,
        "Trainer(accumulate_grad_batches)": str(trainer.accumulate_grad_batches),
        "Trainer(precision)": str(trainer.precision),
        "Trainer(gradient_clip_val)": str(trainer.gradient_clip_val),
        "Trainer(max_epochs)": str(trainer.max_epochs),
        "Trainer(max_steps)": str(trainer.max_steps),
        "optimizer": ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers),
    }


def run_fingerprint(
    trainer: pl.Trainer, settings: RunSettings, *, gradients: dict[str, str], accumulate: int
) -> dict[str, str]:
    """Return `settings_fingerprint` together with the arguments of `ElasticCallback`.

    Args:
        gradients: entries that the gradients' policy adds.
        accumulate: `Trainer(accumulate_grad_batches)` as the user gave it: a plan may have replaced it for a
            provisional world.
    """
    return (
        settings_fingerprint(trainer)
        | settings.batches.fingerprint()
        | gradients
        | {
            "ElasticCallback(seed)": str(settings.seed),
            "ElasticCallback(evaluation)": settings.evaluation,
            "ElasticCallback(stop)": settings.stop,
            "Trainer(accumulate_grad_batches)": str(accumulate),
        }
    )


def parameter_signature(module: torch.nn.Module) -> tuple[str, ...]:
    """Return `name dtype shape` of every parameter and persistent buffer, in order."""
    return tuple(
        f"{name} {str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
        for name, tensor in module.state_dict().items()
        if isinstance(tensor, torch.Tensor)
    )
