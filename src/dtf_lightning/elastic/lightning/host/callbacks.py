"""These functions do for Lightning's own callbacks what their `state_dict` leaves to hooks that a newcomer has missed.

Lightning resumes only from files, before training begins, and its callbacks rely on that:

* `ModelCheckpoint` forgets at which step it saved last, and would save once more where its peers do not;
* `StochasticWeightAveraging` makes its scheduler at the start of an epoch, from the state in the file, which is old by then:
  its learning rate would be another one than its peers';
* `ThroughputMonitor` starts its clock where training begins, and on rank 0 only: another rank 0 has none.
"""

from __future__ import annotations

from typing import Any

import torch

from dtf_lightning.elastic.lightning.host.names import ModelCheckpoint, StochasticWeightAveraging, ThroughputMonitor

_MARKS = ("_last_global_step_saved", "_last_checkpoint_saved", "current_score")


def checkpoint_marks(trainer: Any) -> dict[str, dict[str, Any]]:
    """Return what each `ModelCheckpoint` remembers of its last save, by state key. Tensors are references."""
    return {
        callback.state_key: {name: getattr(callback, name) for name in _MARKS}
        for callback in trainer.checkpoint_callbacks
        if isinstance(callback, ModelCheckpoint)
    }


def set_checkpoint_marks(trainer: Any, marks: dict[str, dict[str, Any]]) -> None:
    """Adopt what `checkpoint_marks` returned on another worker."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            vars(callback).update(marks.get(callback.state_key, {}))


def go_on_averaging(trainer: Any) -> None:
    """Give the trainer's scheduler, which is the run's, to a `StochasticWeightAveraging` that has loaded its state."""
    for callback in trainer.callbacks:
        if isinstance(callback, StochasticWeightAveraging) and callback._scheduler_state and not callback._initialized:
            device = trainer.lightning_module.device
            callback._swa_scheduler = trainer.lr_scheduler_configs[0].scheduler
            callback.n_averaged = torch.tensor(callback._init_n_averaged, dtype=torch.long, device=device)
            assert callback._average_model is not None  # made in set-up
            callback._average_model.to(callback._device or device)
            callback._initialized = True


def measure_throughput(trainer: Any, *, took_over: bool) -> None:
    """Tell every `ThroughputMonitor` the world; `took_over`: this process has become rank 0, and its clock starts."""
    for callback in trainer.callbacks:
        if isinstance(callback, ThroughputMonitor):
            for throughput in callback._throughputs.values():
                throughput.world_size = trainer.world_size
            if took_over:
                callback.on_train_start(trainer)
