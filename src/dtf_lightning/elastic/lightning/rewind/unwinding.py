"""Put right what an exception leaves behind when it passes through Lightning's loops.

Private API touched here: `_current_fx_name`, `_ForwardRedirection`'s patched `forward`, the evaluation loop's
`_module_mode`, `_results`, `_data_fetcher` and `_combined_loader`, the logger connector's `_first_loop_iter` and
`_current_fx`, DDP's `_remove_autograd_hooks`.
"""

from __future__ import annotations

import gc
import logging
import weakref
from typing import TYPE_CHECKING, Any

from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    import lightning.pytorch as pl

log = logging.getLogger(__name__)


def strip_tracebacks(error: BaseException | None) -> None:
    """Free the frames that an exception and its causes hold: they keep tensors, DDP and the process group alive."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def unwrap_ddp(trainer: pl.Trainer) -> None:
    """Take DDP off the model, so that nothing of the old process group is left in it."""
    strategy, module = trainer.strategy, trainer.lightning_module
    wrapped: Any = strategy.model
    if not isinstance(wrapped, DistributedDataParallel):
        return
    wrapped._remove_autograd_hooks()
    still_alive = weakref.ref(wrapped)
    strategy.model = module
    del wrapped
    for parameter in module.parameters():
        parameter.grad = None
    if still_alive() is not None:
        gc.collect()  # 0.3 s: only when something (a cycle) really holds it
        if still_alive() is not None:
            log.debug("the former generation's DDP wrapper is still referenced")


def restore_module(trainer: pl.Trainer, original_forward: Any) -> None:
    """Leave the training or validation step that was interrupted."""
    module: Any = trainer.lightning_module
    module._current_fx_name = None
    if original_forward is None:
        module.__dict__.pop("forward", None)
    else:
        module.forward = original_forward
    validation = trainer.fit_loop.epoch_loop.val_loop
    if trainer.validating or not module.training:
        validation._module_mode.restore(module)
    trainer.training = True
    validation._results.reset()
    results = trainer.fit_loop.epoch_loop._results
    results.batch = None
    results.batch_size = None
    trainer._logger_connector._first_loop_iter = True
    trainer._logger_connector._current_fx = None


def drop_loaders(trainer: pl.Trainer, *, keep_workers: bool) -> None:
    """Forget the iterators over the old world's data; `keep_workers` leaves persistent DataLoader workers running."""
    fit_loop = trainer.fit_loop
    validation = fit_loop.epoch_loop.val_loop
    if fit_loop._data_fetcher is not None:
        if not keep_workers:
            fit_loop._data_fetcher.teardown()
        fit_loop._data_fetcher = None
    fit_loop._combined_loader = None
    drop_validation_loaders(validation)


def drop_validation_loaders(validation: Any) -> None:
    """Forget the validation loop's, so that all members of the generation build theirs anew, together.

    A newcomer's, too: its sanity check has built them for a world that was provisional, unless it knew that it joins.
    Building has a barrier, and a member that skipped it would leave the others waiting there for good.
    """
    if validation._data_fetcher is not None:
        validation._data_fetcher.teardown()
        validation._data_fetcher = None
    validation._combined_loader = None
