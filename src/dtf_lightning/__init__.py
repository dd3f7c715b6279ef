"""PyTorch Lightning runs whose workers join, leave and die while training goes on.

The public names load on first use (PEP 562): torchrun imports this package through its entry points in every process,
long before anybody needs torch or Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dtf_lightning.elastic.data.sampler import ElasticDistributedSampler, WeightedElasticSampler
    from dtf_lightning.elastic.data.shards import ShardedElasticDataset, ShardedElasticSampler
    from dtf_lightning.elastic.lightning.callback import ElasticCallback
    from dtf_lightning.elastic.lightning.callbacks.adaptive_learning_rate import AdaptiveLearningRate
    from dtf_lightning.elastic.lightning.callbacks.best_checkpoints import BestCheckpoints
    from dtf_lightning.elastic.lightning.callbacks.divergence_stopping import DivergenceStopping
    from dtf_lightning.elastic.lightning.strategy import ElasticDDPStrategy

    __version__: str

__all__ = [
    "AdaptiveLearningRate",
    "BestCheckpoints",
    "DivergenceStopping",
    "ElasticCallback",
    "ElasticDDPStrategy",
    "ElasticDistributedSampler",
    "ShardedElasticDataset",
    "ShardedElasticSampler",
    "WeightedElasticSampler",
    "__version__",
]

_HOME = {
    "AdaptiveLearningRate": "dtf_lightning.elastic.lightning.callbacks.adaptive_learning_rate",
    "BestCheckpoints": "dtf_lightning.elastic.lightning.callbacks.best_checkpoints",
    "DivergenceStopping": "dtf_lightning.elastic.lightning.callbacks.divergence_stopping",
    "ElasticCallback": "dtf_lightning.elastic.lightning.callback",
    "ElasticDDPStrategy": "dtf_lightning.elastic.lightning.strategy",
    "ElasticDistributedSampler": "dtf_lightning.elastic.data.sampler",
    "ShardedElasticDataset": "dtf_lightning.elastic.data.shards",
    "ShardedElasticSampler": "dtf_lightning.elastic.data.shards",
    "WeightedElasticSampler": "dtf_lightning.elastic.data.sampler",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("dtf-lightning")
    if name in _HOME:
        value: object = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
