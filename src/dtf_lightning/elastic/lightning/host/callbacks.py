"""These functions do for Lightning's own callbacks what their `state_dict` leaves to hooks that a newcomer has missed.

Lightning resumes only from files, before training begins, and its callbacks rely on that:

* `ModelCheckpoint` forgets at which step it saved last, and would save once more where its peers do not;
* `StochasticWeightAveraging` makes its scheduler at the start of an epoch, from the state in the file, which is old by then:
  its learning rate would be another one than its peers';
* `ModelPruning` keeps the weights of before training, to which it goes back, for itself;
* `Timer` adds the time in its state to what it goes on counting, and would count it twice in a process that lives on;
* `ThroughputMonitor` starts its clock where training begins, and on rank 0 only: another rank 0 has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from dtf_lightning.elastic.lightning.host.names import (
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
)

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


def pruning_tickets(trainer: Any) -> list[torch.Tensor | None]:
    """Return the first weights to which `ModelPruning` goes back; `None` for those that have become the weights themselves.

    It puts the tensors that it has kept into the module, so that training changes both. Tensors are references.
    """
    return [
        None if kept.data_ptr() == weights.data_ptr() else kept.detach() for kept, weights in _kept_and_trained(trainer)
    ]


def set_pruning_tickets(trainer: Any, tickets: list[torch.Tensor | None]) -> None:
    """Adopt what `pruning_tickets` returned on another worker, after the weights."""
    for (kept, weights), ticket in zip(_kept_and_trained(trainer), tickets, strict=True):
        if ticket is None:
            kept.data = weights.data
        else:
            kept.data.copy_(ticket)


def _kept_and_trained(trainer: Any) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield each weight that a `ModelPruning` has kept from before training, with the weight that is trained."""
    for callback in trainer.callbacks:
        if isinstance(callback, ModelPruning):
            for layer in (callback._original_layers or {}).values():
                for index, name in layer["names"]:
                    module: Any = callback._parameters_to_prune[index][0]
                    trained = (
                        getattr(module, f"{name}_orig") if hasattr(module, f"{name}_orig") else getattr(module, name)
                    )
                    yield getattr(layer["data"], name), trained


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


def put_back(callback: Any, state: Any) -> None:
    """Put a callback back to a former state of its own, which its `state_dict` has given, in mid-run."""
    if not isinstance(callback, Timer):  # the time has gone by all the same
        callback.load_state_dict(state)


def measure_throughput(trainer: Any, *, took_over: bool) -> None:
    """Tell every `ThroughputMonitor` the world; `took_over`: this process has become rank 0, and its clock starts."""
    for callback in trainer.callbacks:
        if isinstance(callback, ThroughputMonitor):
            for throughput in callback._throughputs.values():
                throughput.world_size = trainer.world_size
            if took_over:
                callback.on_train_start(trainer)
