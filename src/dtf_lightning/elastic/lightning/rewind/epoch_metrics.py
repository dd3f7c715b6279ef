"""What `self.log(..., on_epoch=True)` has gathered in the running epoch, as far as all ranks must agree on it.

At the end of an epoch Lightning sums each logged value over the ranks, one collective each, and takes for granted that all
ranks have logged the same names in the same order. A worker that logged nothing of its own, because it came at the very
end or had no sample, takes part with nothing: the neutral value, at no weight.

Private API of Lightning touched here: the training loop's `_results`, `_ResultMetric`, `_Metadata`, `_Sync`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lightning.pytorch.trainer.connectors.logger_connector.result import _Metadata, _ResultMetric, _Sync

if TYPE_CHECKING:
    import lightning.pytorch as pl

_FIELDS = (
    "fx",
    "name",
    "prog_bar",
    "logger",
    "on_step",
    "on_epoch",
    "enable_graph",
    "add_dataloader_idx",
    "dataloader_idx",
    "metric_attribute",
)


def dump_logged(trainer: pl.Trainer) -> list[dict[str, Any]]:
    """Which values the epoch has gathered, in their order; without the values."""
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
        for key, result in trainer.fit_loop.epoch_loop._results.items()
        if not result.has_reset and result.meta.sync.group is None
    ]


def load_logged(trainer: pl.Trainer, logged: list[dict[str, Any]]) -> None:
    """Take part in the sums at the epoch's end also for what this worker has not logged itself."""
    results = trainer.fit_loop.epoch_loop._results
    for entry in logged:
        if entry["key"] in results and not results[entry["key"]].has_reset:
            continue
        metadata = _Metadata(**entry["metadata"])
        metadata.sync = _Sync(
            fn=trainer.strategy.reduce, _should=entry["sync_dist"], rank_zero_only=entry["rank_zero_only"]
        )
        result = _ResultMetric(metadata, entry["is_tensor"])
        if not result.is_tensor:
            result.value = trainer.lightning_module.get_submodule(metadata.metric_attribute or "")
        count_as_nothing(result)
        results[entry["key"]] = result.to(trainer.strategy.root_device)


def count_as_nothing(result: _ResultMetric) -> None:
    """There for the sum over the ranks, with no weight."""
    if result.is_tensor:
        result.reset()
        result._update_count = 1  # or `compute` warns
    result.has_reset = False
