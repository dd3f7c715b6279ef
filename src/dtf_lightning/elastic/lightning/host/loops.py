"""These functions use private names of Lightning's loops: loaders, counters, restart flags, the validation mode."""

from __future__ import annotations

from typing import Any

from dtf_lightning.elastic.lightning.host.names import Loop


def forget_loader(loop: Any, *, keep_workers: bool) -> None:
    """Make the next `setup_data` of the fit loop, or of a validation loop, build its loader anew.

    `keep_workers`: whether persistent worker processes of the current DataLoader stay alive.
    """
    if loop._data_fetcher is not None:
        if not keep_workers:
            loop._data_fetcher.teardown()
        loop._data_fetcher = None
    loop._combined_loader = None


def loaders_epoch(trainer: Any) -> int:
    """Return the epoch from which `Trainer(reload_dataloaders_every_n_epochs)` counts to the next training loader."""
    return trainer.fit_loop._last_train_dl_reload_epoch  # type: ignore[no-any-return]


def set_loaders_epoch(trainer: Any, epoch: int) -> None:
    """Count from this epoch, whenever the present training loader was made."""
    trainer.fit_loop._last_train_dl_reload_epoch = epoch


def logged_step(trainer: Any) -> int:
    """Return the step under which Lightning logs: the number of batches in which an optimizer stepped."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def set_logged_step(trainer: Any, step: int) -> None:
    """Make Lightning log under this step."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def skip_next_validation(trainer: Any) -> None:
    """Skip the validation at the end of the current batch, which ran before the checkpoint was saved."""
    trainer.fit_loop.epoch_loop._skip_next_val = True


def all_batches_begun(epoch_loop: Any) -> bool:
    """Tell whether the epoch's last batch has begun."""
    return bool(epoch_loop._num_ready_batches_reached())


def stops_early(trainer: Any) -> bool:
    """Tell whether `trainer.should_stop` ends training now: it does not before `min_epochs` and `min_steps`."""
    return bool(trainer.should_stop and trainer.fit_loop._can_stop_early)


def clear_restart_flags(loop: Loop) -> None:
    """Clear the flags that `load_state_dict` sets: Lightning would skip hooks and advance counters by guessing."""
    loop._restarting = loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
    for child in vars(loop).values():
        if isinstance(child, Loop):
            clear_restart_flags(child)


def leave_validation(trainer: Any) -> None:
    """Leave a validation that was interrupted, if any: set the training mode again and drop the validation's results."""
    validation, module = trainer.fit_loop.epoch_loop.val_loop, trainer.lightning_module
    if trainer.validating or not module.training:
        validation._module_mode.restore(module)
    trainer.training = True
    validation._results.reset()


def leave_evaluation(loop: Any) -> None:
    """Leave a loop of `test`, `validate` or `predict` that was interrupted: mode, results, loaders and hooks."""
    loop._module_mode.restore(loop.trainer.lightning_module)
    if loop._results is not None:  # a prediction has none
        loop._results.reset()
    forget_loader(loop, keep_workers=False)
    forget_running_hook(loop.trainer)


def running_hook(trainer: Any) -> str | None:
    """Return the name of the hook, or of the module's step, that is running; `None` outside of them."""
    name: str | None = trainer.lightning_module._current_fx_name
    return name


def no_hook_runs(trainer: Any) -> None:
    """Take note that no hook is running, even if one has raised in an earlier call of the trainer."""
    trainer.lightning_module._current_fx_name = None


def forget_running_hook(trainer: Any) -> None:
    """Tell Lightning that no hook and no batch runs: what is logged next belongs to a new step."""
    no_hook_runs(trainer)
    results = trainer.fit_loop.epoch_loop._results
    results.batch = None
    results.batch_size = None
    connector = trainer._logger_connector
    connector._first_loop_iter = True
    connector._current_fx = None
