"""This module has Lightning's classes and functions, public and private, from the package that this process uses."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from dtf_lightning.elastic.lightning.host.choice import LIGHTNING, find

PACKAGE = find()
"""Name of the package in use: `lightning.pytorch` or `pytorch_lightning`."""
FABRIC = "lightning.fabric" if PACKAGE == LIGHTNING else "lightning_fabric"

if TYPE_CHECKING:
    from lightning.fabric.plugins.environments import ClusterEnvironment, TorchElasticEnvironment
    from lightning.fabric.utilities.rank_zero import rank_zero_only
    from lightning.pytorch import callbacks
    from lightning.pytorch.callbacks import (
        BatchSizeFinder,
        Callback,
        Checkpoint,
        EarlyStopping,
        GradientAccumulationScheduler,
        LearningRateFinder,
        ModelCheckpoint,
        ModelPruning,
        ProgressBar,
        RichProgressBar,
        SpikeDetection,
        StochasticWeightAveraging,
        ThroughputMonitor,
        Timer,
        TQDMProgressBar,
    )
    from lightning.pytorch.callbacks.progress.tqdm_progress import convert_inf
    from lightning.pytorch.core import LightningModule
    from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
    from lightning.pytorch.loggers.logger import Logger
    from lightning.pytorch.loops import _Loop as Loop
    from lightning.pytorch.loops.evaluation_loop import _EvaluationLoop as EvaluationLoop
    from lightning.pytorch.loops.fit_loop import _FitLoop as FitLoop
    from lightning.pytorch.loops.optimization.automatic import ClosureResult
    from lightning.pytorch.loops.optimization.automatic import _AutomaticOptimization as AutomaticOptimization
    from lightning.pytorch.loops.prediction_loop import _PredictionLoop as PredictionLoop
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop as TrainingEpochLoop
    from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy, StrategyRegistry
    from lightning.pytorch.trainer import call
    from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata as ResultMetadata
    from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultMetric as ResultMetric
    from lightning.pytorch.trainer.connectors.logger_connector.result import _Sync as ResultSync
    from lightning.pytorch.trainer.states import TrainerFn
    from lightning.pytorch.utilities.combined_loader import (
        _shutdown_workers_and_reset_iterator as shut_down_data_workers,
    )
    from lightning.pytorch.utilities.data import _update_dataloader as remake_loader
    from lightning.pytorch.utilities.exceptions import SIGTERMException
    from lightning.pytorch.utilities.model_helpers import is_overridden
    from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
    from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
    from lightning.pytorch.utilities.types import LRSchedulerConfig

    VERSION: str
else:
    _HOMES = {
        ".callbacks": "BatchSizeFinder Callback Checkpoint EarlyStopping GradientAccumulationScheduler "
        "LearningRateFinder ModelCheckpoint ModelPruning ProgressBar RichProgressBar SpikeDetection StochasticWeightAveraging "
        "ThroughputMonitor Timer TQDMProgressBar",
        ".callbacks.progress.tqdm_progress": "convert_inf",
        ".core": "LightningModule",
        ".loggers": "CSVLogger MLFlowLogger TensorBoardLogger WandbLogger",
        ".loggers.logger": "Logger",
        ".loops": "Loop=_Loop",
        ".loops.evaluation_loop": "EvaluationLoop=_EvaluationLoop",
        ".loops.fit_loop": "FitLoop=_FitLoop",
        ".loops.optimization.automatic": "ClosureResult AutomaticOptimization=_AutomaticOptimization",
        ".loops.prediction_loop": "PredictionLoop=_PredictionLoop",
        ".loops.training_epoch_loop": "TrainingEpochLoop=_TrainingEpochLoop",
        ".strategies": "DDPStrategy SingleDeviceStrategy StrategyRegistry",
        ".trainer": "call",
        ".trainer.connectors.logger_connector.result": "ResultMetadata=_Metadata ResultMetric=_ResultMetric "
        "ResultSync=_Sync",
        ".trainer.states": "TrainerFn",
        ".utilities.combined_loader": "shut_down_data_workers=_shutdown_workers_and_reset_iterator",
        ".utilities.data": "remake_loader=_update_dataloader",
        ".utilities.exceptions": "SIGTERMException",
        ".utilities.model_helpers": "is_overridden",
        ".utilities.rank_zero": "rank_zero_info rank_zero_warn",
        ".utilities.signature_utils": "is_param_in_hook_signature",
        ".utilities.types": "LRSchedulerConfig",
    }
    for _module, _names in _HOMES.items():
        for _entry in _names.split():
            _ours, _, _theirs = _entry.partition("=")
            globals()[_ours] = getattr(import_module(PACKAGE + _module), _theirs or _ours)
    callbacks = import_module(PACKAGE + ".callbacks")
    VERSION = import_module(PACKAGE.partition(".")[0]).__version__
    _environments = import_module(FABRIC + ".plugins.environments")
    ClusterEnvironment = _environments.ClusterEnvironment
    TorchElasticEnvironment = _environments.TorchElasticEnvironment
    rank_zero_only = import_module(FABRIC + ".utilities.rank_zero").rank_zero_only

__all__ = [
    "FABRIC",
    "PACKAGE",
    "VERSION",
    "AutomaticOptimization",
    "BatchSizeFinder",
    "CSVLogger",
    "Callback",
    "Checkpoint",
    "ClosureResult",
    "ClusterEnvironment",
    "DDPStrategy",
    "EarlyStopping",
    "EvaluationLoop",
    "FitLoop",
    "GradientAccumulationScheduler",
    "LRSchedulerConfig",
    "LearningRateFinder",
    "LightningModule",
    "Logger",
    "Loop",
    "MLFlowLogger",
    "ModelCheckpoint",
    "ModelPruning",
    "PredictionLoop",
    "ProgressBar",
    "ResultMetadata",
    "ResultMetric",
    "ResultSync",
    "RichProgressBar",
    "SIGTERMException",
    "SingleDeviceStrategy",
    "SpikeDetection",
    "StochasticWeightAveraging",
    "StrategyRegistry",
    "TQDMProgressBar",
    "TensorBoardLogger",
    "ThroughputMonitor",
    "Timer",
    "TorchElasticEnvironment",
    "TrainerFn",
    "TrainingEpochLoop",
    "WandbLogger",
    "call",
    "callbacks",
    "convert_inf",
    "is_overridden",
    "is_param_in_hook_signature",
    "rank_zero_info",
    "rank_zero_only",
    "rank_zero_warn",
    "remake_loader",
    "shut_down_data_workers",
]

WEIGHT_AVERAGING: tuple[type[Callback], ...] = (
    (callbacks.WeightAveraging,) if hasattr(callbacks, "WeightAveraging") else ()
)
"""The callback class that swaps other weights in, for `isinstance`; empty with Lightning 2.5, which has none."""


def is_lightnings(thing: object) -> bool:
    """Tell whether an object's class is Lightning's own, not a user's."""
    return type(thing).__module__.startswith(f"{PACKAGE}.")
