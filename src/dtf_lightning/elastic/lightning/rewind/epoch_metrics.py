"""These functions carry the names that `self.log(..., on_epoch=True)` has gathered in an epoch to a joining worker.

At the end of an epoch Lightning sums each logged value over the ranks, one collective each, and relies on all ranks
having logged the same names in the same order. A worker that logged nothing itself, because it joined at the very end or
had no sample, takes part with the neutral value, of weight 0.

Private API of Lightning touched here: the training loop's `_results`, `_ResultMetric`, `_Metadata`, `_Sync`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from dtf_lightning.elastic.lightning.host.logs import count_as_nothing, training_results
from dtf_lightning.elastic.lightning.host.names import ResultMetadata, ResultMetric, ResultSync

if TYPE_CHECKING:
    import lightning.pytorch as pl

_FIELDS = tuple(field.name for field in fields(ResultMetadata) if field.name not in ("reduce_fx", "_sync"))
"""Fields of a logged value's metadata, without the way in which it is summed, which the receiver sets up again."""


def dump_logged(trainer: pl.Trainer) -> list[dict[str, Any]]:
    """Return the metadata of the values that the epoch has gathered, in their order, without the values."""
    return [
        {
            "key": key,
            "metadata": {
                "reduce_fx": result.meta.reduce_fx.__name__,
                **{name: getattr(result.meta, name) for name in _FIELDS},
            },
            "sync_dist": result.meta.sync.should,
            "rank_zero_only": result.meta.sync.rank_zero_only,
            "is_tensor": result.is_tensor,
        }
        for key, result in training_results(trainer).items()
        if not result.has_reset and result.meta.sync.group is None
    ]


def load_logged(trainer: pl.Trainer, logged: list[dict[str, Any]]) -> None:
    """Let this worker take part in the sums at the epoch's end for values that it has not logged itself."""
    results = training_results(trainer)
    for entry in logged:
        if entry["key"] in results and not results[entry["key"]].has_reset:
            continue
        metadata = ResultMetadata(**entry["metadata"])
        metadata.sync = ResultSync(
            fn=trainer.strategy.reduce, _should=entry["sync_dist"], rank_zero_only=entry["rank_zero_only"]
        )
        result = ResultMetric(metadata, entry["is_tensor"])
        if not result.is_tensor:
            result.value = trainer.lightning_module.get_submodule(metadata.metric_attribute or "")
        count_as_nothing(result)
        results[entry["key"]] = result.to(trainer.strategy.root_device)
