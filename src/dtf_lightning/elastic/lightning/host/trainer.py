"""These functions use private names of the trainer's connectors and strategies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dtf_lightning.elastic.lightning.host.names import call


def on_sigterm(trainer: Any, handler: Callable[[], None]) -> None:
    """Set what SIGTERM does while the trainer's own signal handlers are installed."""
    trainer._signal_connector._sigterm_notifier_fn = lambda *_: handler()


def set_cluster_environment(trainer: Any, environment: Any) -> None:
    """Set the cluster environment from which the trainer takes rank and world size."""
    trainer._accelerator_connector.cluster_environment = environment


def replace_strategy(trainer: Any, strategy: Any) -> None:
    """Replace the trainer's strategy by another one, bound to the same module."""
    former = trainer.strategy
    strategy._lightning_module = former._lightning_module
    strategy.model = former.model
    strategy._layer_sync = getattr(former, "_layer_sync", None)
    trainer._accelerator_connector.strategy = strategy


def is_running(trainer: Any) -> bool:
    """Tell whether the trainer is in `fit`, or in another of its entry points."""
    return bool(trainer.state.status.value == "running")


def starts_processes(strategy: Any) -> bool:
    """Tell whether this is a `DDPStrategy` that forks or spawns its processes: `ddp_spawn`, `ddp_fork`, `ddp_notebook`."""
    return getattr(strategy, "_start_method", "popen") != "popen"


def syncs_batch_norm(strategy: Any) -> bool:
    """Tell whether `Trainer(sync_batchnorm=True)` is set."""
    return strategy._layer_sync is not None


def has_comm_hook(strategy: Any) -> bool:
    """Tell whether a `DDPStrategy` was given a communication hook or its state."""
    return strategy._ddp_comm_hook is not None or strategy._ddp_comm_state is not None


def arguments_of_one_world(strategy: Any) -> list[str]:
    """Return the names of a `DDPStrategy`'s arguments that hold on to one world.

    That is to a process group or to one rank's part of a state; or they leave hooks and casts on the model, for which DDP
    has no way back when the model is wrapped anew.
    """
    own = {"ddp_comm_state": strategy._ddp_comm_state, "model_averaging_period": strategy._model_averaging_period}
    torchs = (
        "process_group",
        "device_mesh",
        "delay_all_reduce_named_params",
        "param_to_hook_all_reduce",
        "mixed_precision",
    )
    given = own | {name: strategy._ddp_kwargs.get(name) for name in torchs}
    return [name for name, value in given.items() if value is not None]


def dump_checkpoint(trainer: Any) -> dict[str, Any]:
    """Return the whole checkpoint that Lightning would write. For some strategies a collective. Tensors are references."""
    checkpoint: dict[str, Any] = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    return checkpoint


def load_checkpoint(trainer: Any, checkpoint: dict[str, Any]) -> None:
    """Resume from Lightning's checkpoint, as `fit(ckpt_path=...)` does."""
    connector = trainer._checkpoint_connector
    connector._loaded_checkpoint = checkpoint
    connector.restore_datamodule()
    connector.restore_model()
    connector.restore_callbacks()
    connector.restore_training_state()
    connector._loaded_checkpoint = {}


def run_load_hooks(trainer: Any, checkpoint: dict[str, Any], callbacks: dict[str, Any]) -> None:
    """Do what resuming from the checkpoint does besides loading weights, optimizers, schedulers and loops.

    The module's and the callbacks' `on_load_checkpoint` hooks run, and the data module loads its state; the states in
    `callbacks` are loaded in place of the checkpoint's.
    """
    connector = trainer._checkpoint_connector
    connector._loaded_checkpoint = checkpoint
    try:
        connector.restore_datamodule()
        call._call_lightning_module_hook(trainer, "on_load_checkpoint", checkpoint)
        call._call_callbacks_on_load_checkpoint(trainer, {**checkpoint, "callbacks": callbacks})
        call._call_callbacks_load_state_dict(trainer, {**checkpoint, "callbacks": callbacks})
    finally:
        connector._loaded_checkpoint = {}


def callback_states(trainer: Any) -> dict[str, Any]:
    """Return every callback's `state_dict` by its state key; not copied."""
    states: dict[str, Any] = call._call_callbacks_state_dict(trainer)
    return states
