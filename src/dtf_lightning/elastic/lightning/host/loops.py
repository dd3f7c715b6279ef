"""What Lightning's loops keep to themselves: loaders, counters, marks of a restart, the mode of a validation."""

from __future__ import annotations

from typing import Any

from dtf_lightning.elastic.lightning.host.names import Loop


def forget_loader(loop: Any, *, keep_workers: bool) -> None:
    """Make the fit loop's, or a validation loop's, next `setup_data` build its loader anew.

    `keep_workers`: persistent DataLoader workers of the running one live on.
    """
    if loop._data_fetcher is not None:
        if not keep_workers:
            loop._data_fetcher.teardown()
        loop._data_fetcher = None
    loop._combined_loader = None


def logged_step(trainer: Any) -> int:
    """The step under which Lightning logs: batches in which an optimizer stepped."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def set_logged_step(trainer: Any, step: int) -> None:
    """Log under this step from now on."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def skip_next_validation(trainer: Any) -> None:
    """The validation that is due at the running batch's end was done before the checkpoint was saved."""
    trainer.fit_loop.epoch_loop._skip_next_val = True


def all_batches_begun(epoch_loop: Any) -> bool:
    """Whether the epoch's last batch has begun."""
    return bool(epoch_loop._num_ready_batches_reached())


def clear_restart_flags(loop: Loop) -> None:
    """Undo what `load_state_dict` marks: Lightning would skip and advance counters on its own guesses."""
    loop._restarting = loop._loaded_from_state_dict = loop._resuming_from_checkpoint = False
    for child in vars(loop).values():
        if isinstance(child, Loop):
            clear_restart_flags(child)


def leave_validation(trainer: Any) -> None:
    """Back from a validation that was interrupted, if one was: modules train again, its results are gone."""
    validation, module = trainer.fit_loop.epoch_loop.val_loop, trainer.lightning_module
    if trainer.validating or not module.training:
        validation._module_mode.restore(module)
    trainer.training = True
    validation._results.reset()


def forget_running_hook(trainer: Any) -> None:
    """No hook and no batch runs: what is logged next belongs to a step that begins."""
    trainer.lightning_module._current_fx_name = None
    results = trainer.fit_loop.epoch_loop._results
    results.batch = None
    results.batch_size = None
    connector = trainer._logger_connector
    connector._first_loop_iter = True
    connector._current_fx = None
