"""These functions clean up what an exception leaves behind when it passes through Lightning's loops.

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

from dtf_lightning.elastic.lightning.host.loops import forget_loader, forget_running_hook, leave_validation

if TYPE_CHECKING:
    import lightning.pytorch as pl

log = logging.getLogger(__name__)


def strip_tracebacks(error: BaseException | None) -> None:
    """Free the frames that an exception and its causes refer to: they keep tensors, DDP and the process group alive."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def unwrap_ddp(trainer: pl.Trainer, *, keep_gradients: bool = False) -> None:
    """Remove DDP from the model, so that nothing of the old process group is left in it.

    `keep_gradients`: micro-batches of the current step have been accumulated, and count.
    """
    strategy, module = trainer.strategy, trainer.lightning_module
    wrapped: Any = strategy.model
    if not isinstance(wrapped, DistributedDataParallel):
        return
    wrapped._remove_autograd_hooks()
    still_alive = weakref.ref(wrapped)
    strategy.model = module
    del wrapped
    if not keep_gradients:
        for parameter in module.parameters():
            parameter.grad = None
    if still_alive() is not None:
        gc.collect()  # takes 0.3 s, so only if a reference cycle really keeps it alive
        if still_alive() is not None:
            log.debug("the former generation's DDP wrapper is still referenced")


def restore_module(trainer: pl.Trainer, original_forward: Any) -> None:
    """Reset the module after a training or validation step that was interrupted."""
    module: Any = trainer.lightning_module
    if original_forward is None:
        module.__dict__.pop("forward", None)
    else:
        module.forward = original_forward
    leave_validation(trainer)
    forget_running_hook(trainer)


def drop_loaders(trainer: pl.Trainer, *, keep_workers: bool) -> None:
    """Drop the iterators over the old world's data; `keep_workers` leaves persistent DataLoader workers running."""
    forget_loader(trainer.fit_loop, keep_workers=keep_workers)
    drop_validation_loaders(trainer.fit_loop.epoch_loop.val_loop)


def drop_validation_loaders(validation: Any) -> None:
    """Drop the validation loop's loaders, so that all members of the generation build theirs anew, together.

    A newcomer drops its loaders, too: its sanity check built them for a provisional world, unless it knew that it joins.
    Building has a barrier, and a member that skipped it would leave the others waiting there forever.
    """
    forget_loader(validation, keep_workers=False)
