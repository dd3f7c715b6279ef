"""These functions tell Lightning which process is rank zero; `run_log` and `progress_bars` pass on its other tasks."""

from __future__ import annotations

from lightning_utilities.core.rank_zero import rank_zero_only as utilities_rank_zero_only

from dtf_lightning import environment
from dtf_lightning.elastic.lightning.host.names import rank_zero_only


def publish_rank(rank: int) -> None:
    """Set this process's rank (starting at 0) for Lightning and for libraries that read the environment."""
    environment.set_rank(rank)
    set_rank_zero(rank)


def set_rank_zero(rank: int) -> None:
    """Set the rank on which Lightning's `rank_zero_only` functions run."""
    for decorator in (rank_zero_only, utilities_rank_zero_only):
        setattr(decorator, "rank", rank)  # noqa: B010  mypy knows no attribute of a function
