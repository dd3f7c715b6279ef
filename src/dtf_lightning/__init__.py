"""PyTorch Lightning runs whose workers join, leave and die while training goes on.

The public names load on first use (PEP 562): torchrun imports this package through its entry points in every process,
long before anybody needs torch or Lightning.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dtf_lightning.elastic.agent.notice import Notice
    from dtf_lightning.elastic.checkpoints.reader import best_checkpoint, latest_checkpoint, verify
    from dtf_lightning.elastic.checkpoints.retention import Policy as RetentionPolicy
    from dtf_lightning.elastic.data.sampler import ElasticDistributedSampler, WeightedElasticSampler
    from dtf_lightning.elastic.data.shards import ShardedElasticDataset, ShardedElasticSampler
    from dtf_lightning.elastic.data.step_plans import BatchPolicy
    from dtf_lightning.elastic.data.streams import Streams
    from dtf_lightning.elastic.lightning.callback import ElasticCallback
    from dtf_lightning.elastic.lightning.callbacks.adaptive_learning_rate import AdaptiveLearningRate
    from dtf_lightning.elastic.lightning.callbacks.best_checkpoints import BestCheckpoints
    from dtf_lightning.elastic.lightning.callbacks.divergence_stopping import DivergenceStopping
    from dtf_lightning.elastic.lightning.strategy import ElasticDDPStrategy
    from dtf_lightning.elastic.observe.ledger import audit as audit_ledgers
    from dtf_lightning.elastic.reports.store import ResultsStore

    __version__: str

__all__ = [
    "AdaptiveLearningRate",
    "BatchPolicy",
    "BestCheckpoints",
    "DivergenceStopping",
    "ElasticCallback",
    "ElasticDDPStrategy",
    "ElasticDistributedSampler",
    "Notice",
    "ResultsStore",
    "RetentionPolicy",
    "ShardedElasticDataset",
    "ShardedElasticSampler",
    "Streams",
    "WeightedElasticSampler",
    "__version__",
    "audit_ledgers",
    "best_checkpoint",
    "latest_checkpoint",
    "verify",
]

_HOME = {
    "AdaptiveLearningRate": "dtf_lightning.elastic.lightning.callbacks.adaptive_learning_rate",
    "BatchPolicy": "dtf_lightning.elastic.data.step_plans",
    "BestCheckpoints": "dtf_lightning.elastic.lightning.callbacks.best_checkpoints",
    "DivergenceStopping": "dtf_lightning.elastic.lightning.callbacks.divergence_stopping",
    "ElasticCallback": "dtf_lightning.elastic.lightning.callback",
    "ElasticDDPStrategy": "dtf_lightning.elastic.lightning.strategy",
    "ElasticDistributedSampler": "dtf_lightning.elastic.data.sampler",
    "Notice": "dtf_lightning.elastic.agent.notice",
    "ResultsStore": "dtf_lightning.elastic.reports.store",
    "RetentionPolicy": "dtf_lightning.elastic.checkpoints.retention:Policy",
    "ShardedElasticDataset": "dtf_lightning.elastic.data.shards",
    "ShardedElasticSampler": "dtf_lightning.elastic.data.shards",
    "Streams": "dtf_lightning.elastic.data.streams",
    "WeightedElasticSampler": "dtf_lightning.elastic.data.sampler",
    "audit_ledgers": "dtf_lightning.elastic.observe.ledger:audit",
    "best_checkpoint": "dtf_lightning.elastic.checkpoints.reader",
    "latest_checkpoint": "dtf_lightning.elastic.checkpoints.reader",
    "verify": "dtf_lightning.elastic.checkpoints.reader",
}
"""Public name -> its module, and after a colon the name that it has there, if it is another."""


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("dtf-lightning")
    if name in _HOME:
        module, _, attribute = _HOME[name].partition(":")
        value: object = getattr(import_module(module), attribute or name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; public names are {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
