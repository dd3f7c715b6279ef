"""What Lightning gathers of `self.log`, and what its loggers and progress bars keep to themselves."""

from __future__ import annotations

from typing import Any

import torch
from torchmetrics import Metric

from dtf_lightning.elastic.lightning.host.names import MLFlowLogger, ResultMetric, WandbLogger

# `ResultMetric` never changes a tensor in place: a reference is a copy.
_RESULT_STATE = ("value", "cumulated_batch_size", "has_reset", "_update_count", "_computed", "_forward_cache")
_METRIC_STATE = ("_update_count", "_computed", "_forward_cache")
_SHOWN = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")

# --- what was logged ---------------------------------------------------------------------------------------------------


def training_results(trainer: Any) -> dict[str, ResultMetric]:
    """What `self.log` has gathered in the running epoch, by key; live: changes count."""
    results: dict[str, ResultMetric] = trainer.fit_loop.epoch_loop._results
    return results


def validation_results(trainer: Any) -> dict[str, Any]:
    """A validation's own metrics, without training's, by name."""
    results: dict[str, Any] = trainer.fit_loop.epoch_loop.val_loop._results.metrics(on_step=False)["callback"]
    return results


def result_state(result: ResultMetric) -> dict[str, Any]:
    """What one more `self.log` changes of it; give it back with `vars(result).update`."""
    return {name: value for name, value in vars(result).items() if name in _RESULT_STATE}


def count_as_nothing(result: ResultMetric) -> None:
    """There for the sum over the ranks, with no weight."""
    if result.is_tensor:
        result.reset()
        result._update_count = 1  # or `compute` warns
    result.has_reset = False


def forget_computed(trainer: Any) -> None:
    """Drop what metrics, logged and the module's own, keep of their last `compute`."""
    for result in training_results(trainer).values():
        result._computed = None
    for module in trainer.lightning_module.modules():
        if isinstance(module, Metric):
            module._computed = None


def metric_state(metric: Metric) -> dict[str, Any]:
    """What one more `update` changes of a torchmetrics metric: it may change tensors in place, and appends to lists."""
    state = {name: vars(metric)[name] for name in _METRIC_STATE}
    for name in metric._defaults:
        value = getattr(metric, name)
        state[name] = value.clone() if isinstance(value, torch.Tensor) else list(value)
    return state


def shown_metrics(trainer: Any) -> dict[str, dict[str, Any]]:
    """`trainer.callback_metrics`, `logged_metrics` and `progress_bar_metrics` as they stand, by a name of their own."""
    return {name: getattr(trainer._logger_connector, name) for name in _SHOWN}


def show_on_bars(trainer: Any, **texts: str) -> None:
    """Beside the metrics of every bar, also of users' own."""
    trainer._logger_connector._progress_bar_metrics.update(texts)


def is_validated(trainer: Any) -> bool:
    """In the hooks at the end of a validation: all its batches are done, as Lightning's logger connector knows."""
    return bool(trainer.validating) and trainer._logger_connector._first_loop_iter is None


def logs_this_step(trainer: Any) -> bool:
    """Whether the running step is one of every `log_every_n_steps`."""
    return bool(trainer._logger_connector.should_update_logs)


def end_step(trainer: Any) -> None:
    """Do with what a step has logged what Lightning does when the step's hooks are over."""
    connector = trainer._logger_connector
    if connector._first_loop_iter is not None:  # None: nothing was logged here, the position is a checkpoint's
        connector.on_batch_end()
        connector.update_train_step_metrics()


# --- loggers -----------------------------------------------------------------------------------------------------------


def opened(logger: Any) -> Any:
    """The experiment that a TensorBoard or CSV logger has opened; `None` before."""
    return logger._experiment


def close_experiment(logger: Any) -> Any:
    """Make the logger open another experiment when it needs one; the former one, or `None`."""
    experiment, logger._experiment = logger._experiment, None
    return experiment


def log_prefix(logger: Any) -> str:
    """What the logger writes before each name."""
    return f"{logger._prefix}{logger.LOGGER_JOIN_CHAR}" if logger._prefix else ""


def adopt_version(logger: Any, version: Any) -> None:
    """Make the logger write into the run, or the folder, that has this name."""
    if isinstance(logger, WandbLogger):
        logger._id = logger._wandb_init["id"] = version
    elif isinstance(logger, MLFlowLogger):
        logger._run_id = version
    elif hasattr(logger, "_version"):
        logger._version = version


# --- progress bars -----------------------------------------------------------------------------------------------------


def tqdm_bars(bar: Any) -> tuple[Any, Any]:
    """A tqdm progress bar's bar of the epoch and of the validation; `None` for one that is not shown."""
    return bar._train_progress_bar, bar._val_progress_bar


def stop_rich_bar(bar: Any) -> None:
    """Leave the terminal as it was."""
    bar._stop_progress()
