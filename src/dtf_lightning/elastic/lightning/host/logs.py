"""These functions use private names of Lightning's logged results, loggers and progress bars."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torchmetrics import Metric

from dtf_lightning.elastic.lightning.host.names import MLFlowLogger, ResultMetric, WandbLogger

# `ResultMetric` never changes a tensor in place, so that a reference serves as a copy.
_RESULT_STATE = ("value", "cumulated_batch_size", "has_reset", "_update_count", "_computed", "_forward_cache")
_METRIC_STATE = ("_update_count", "_computed", "_forward_cache")
_SHOWN = ("_callback_metrics", "_logged_metrics", "_progress_bar_metrics")

# --- what was logged ---------------------------------------------------------------------------------------------------


def training_results(trainer: Any) -> dict[str, ResultMetric]:
    """Return what `self.log` has gathered in the current epoch, by key; not a copy: changes take effect."""
    results: dict[str, ResultMetric] = trainer.fit_loop.epoch_loop._results
    return results


def validation_results(trainer: Any) -> dict[str, Any]:
    """Return a validation's own metrics by name, without those of training."""
    results: dict[str, Any] = trainer.fit_loop.epoch_loop.val_loop._results.metrics(on_step=False)["callback"]
    return results


def result_state(result: ResultMetric) -> dict[str, Any]:
    """Return the attributes that another `self.log` changes; `vars(result).update` restores them."""
    return {name: value for name, value in vars(result).items() if name in _RESULT_STATE}


def count_as_nothing(result: ResultMetric) -> None:
    """Let a result take part in the sum over the ranks with no weight."""
    if result.is_tensor:
        result.reset()
        result._update_count = 1  # or `compute` warns
    result.has_reset = False


def forget_logged(trainer: Any) -> None:
    """Forget which values evaluations before `fit` have logged: they were bound to a strategy that was replaced since."""
    for loop in (trainer.validate_loop, trainer.test_loop):
        loop._results.clear()


def forget_computed(trainer: Any) -> None:
    """Drop the cached result of the last `compute` of all metrics, logged ones and the module's own."""
    for result in training_results(trainer).values():
        result._computed = None
    for module in trainer.lightning_module.modules():
        if isinstance(module, Metric):
            module._computed = None


def metric_state(metric: Metric) -> dict[str, Any]:
    """Return copies of what another `update` of a torchmetrics metric changes: tensors in place, and lists."""
    state = {name: vars(metric)[name] for name in _METRIC_STATE}
    for name in metric._defaults:
        value = getattr(metric, name)
        state[name] = value.clone() if isinstance(value, torch.Tensor) else list(value)
    return state


def metric_names(metric: Metric) -> frozenset[str]:
    """Return names of the attributes that every metric has, and of the states of which `metric_state` returns copies."""
    return _names_in_every_metric() | metric._defaults.keys()


@cache
def _names_in_every_metric() -> frozenset[str]:
    class Plain(Metric):
        def update(self) -> None:
            """Take no values."""

        def compute(self) -> None:
            """Return nothing."""

    return frozenset(vars(Plain()))


def shown_metrics(trainer: Any) -> dict[str, dict[str, Any]]:
    """Return the dictionaries behind `trainer.callback_metrics`, `logged_metrics` and `progress_bar_metrics`, by name."""
    return {name: getattr(trainer._logger_connector, name) for name in _SHOWN}


def show_on_bars(trainer: Any, **texts: str) -> None:
    """Show texts by name beside the metrics of every progress bar, also of users' own bars."""
    trainer._logger_connector._progress_bar_metrics.update(texts)


def is_validated(trainer: Any) -> bool:
    """Tell whether all batches of the running validation are done, and only its last hooks still run."""
    return bool(trainer.validating) and trainer._logger_connector._first_loop_iter is None


def logs_this_step(trainer: Any) -> bool:
    """Tell whether Lightning logs in the current step, one in `log_every_n_steps`."""
    return bool(trainer._logger_connector.should_update_logs)


def end_step(trainer: Any) -> None:
    """Process what a step has logged, as Lightning does when the step's hooks are done."""
    connector = trainer._logger_connector
    if connector._first_loop_iter is not None:  # None: nothing was logged here, the position is a checkpoint's
        connector.on_batch_end()
        connector.update_train_step_metrics()


# --- loggers -----------------------------------------------------------------------------------------------------------


def opened(logger: Any) -> Any:
    """Return the experiment that a TensorBoard or CSV logger has opened; `None` if it has not opened one."""
    return logger._experiment


def close_experiment(logger: Any) -> Any:
    """Make the logger open another experiment when it needs one; return the former experiment, or `None`."""
    experiment, logger._experiment = logger._experiment, None
    return experiment


def log_prefix(logger: Any) -> str:
    """Return the prefix that the logger writes before each name."""
    return f"{logger._prefix}{logger.LOGGER_JOIN_CHAR}" if logger._prefix else ""


def adopt_version(logger: Any, version: Any) -> None:
    """Make the logger write into the run, or the folder, of this version."""
    if isinstance(logger, WandbLogger):
        logger._id = logger._wandb_init["id"] = version
    elif isinstance(logger, MLFlowLogger):
        logger._run_id = version
    elif hasattr(logger, "_version"):
        logger._version = version


# --- progress bars -----------------------------------------------------------------------------------------------------


def tqdm_bars(bar: Any) -> tuple[Any, Any]:
    """Return the epoch's and the validation's tqdm bar of a progress bar; `None` for one that does not exist."""
    return bar._train_progress_bar, bar._val_progress_bar


def stop_rich_bar(bar: Any) -> None:
    """Stop a rich progress bar, which restores the terminal."""
    bar._stop_progress()
