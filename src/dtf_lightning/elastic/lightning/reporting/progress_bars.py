"""These functions take Lightning's progress bars through rescales: each shows the world, and none is shown twice.

Private API touched here: the bars' `_train_progress_bar`, `_val_progress_bar`, `_stop_progress`, the logger connector's
`_progress_bar_metrics`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dtf_lightning.elastic.lightning.host.logs import show_on_bars, stop_rich_bar, tqdm_bars
from dtf_lightning.elastic.lightning.host.names import ProgressBar, RichProgressBar, TQDMProgressBar, convert_inf

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from dtf_lightning.elastic.rules.generation import Generation


def show_world(trainer: pl.Trainer, generation: Generation) -> None:
    """Show `world=3, gen=2` beside the metrics of every bar, also users' own. As text: rich would write 3.000."""
    show_on_bars(trainer, world=str(generation.world_size), gen=str(generation.number))


def pause(trainer: pl.Trainer) -> None:
    """Close the bar of an interrupted validation and clear the epoch's line for messages, as a rescale begins."""
    bar: Any = trainer.progress_bar_callback
    if isinstance(bar, TQDMProgressBar):
        of_epoch, of_validation = tqdm_bars(bar)
        if of_validation is not None:
            of_validation.close()
        if of_epoch is not None and not of_epoch.disable:
            of_epoch.clear()
    if isinstance(bar, RichProgressBar) and bar.progress is not None and bar.val_progress_bar_id is not None:
        bar.progress.update(bar.val_progress_bar_id, visible=False)
        bar.val_progress_bar_id = None
    if isinstance(bar, ProgressBar):
        bar.reset_dataloader_idx_tracker()  # or a validation that is done again would find no new loader


def take_over(trainer: pl.Trainer, *, in_epoch: bool) -> None:
    """Show the bar of this process, which has become rank 0. At an epoch's start Lightning itself calls its epoch hook."""
    bar: Any = trainer.progress_bar_callback
    if isinstance(bar, ProgressBar):
        bar.enable()
        bar.on_train_start(trainer, trainer.lightning_module)
        if in_epoch:
            bar.on_train_epoch_start(trainer, trainer.lightning_module)


def go_on(trainer: pl.Trainer) -> None:
    """Show how many batches are done, and how many there are, after the rest of the epoch was divided again."""
    bar: Any = trainer.progress_bar_callback
    done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
    if isinstance(bar, TQDMProgressBar):
        shown, _ = tqdm_bars(bar)
        if shown is not None and not shown.disable:
            shown.total, shown.n = convert_inf(bar.total_train_batches), done
            shown.refresh()
    if isinstance(bar, RichProgressBar) and bar.progress is not None and bar.train_progress_bar_id is not None:
        bar.progress.update(bar.train_progress_bar_id, total=bar.total_train_batches, completed=done)
        bar.refresh()


def close(trainer: pl.Trainer) -> None:
    """Leave the bar where it is and restore the terminal, because this process leaves the run."""
    bar: Any = trainer.progress_bar_callback
    if isinstance(bar, TQDMProgressBar) and (of_epoch := tqdm_bars(bar)[0]) is not None:
        of_epoch.close()
    if isinstance(bar, RichProgressBar):
        stop_rich_bar(bar)
