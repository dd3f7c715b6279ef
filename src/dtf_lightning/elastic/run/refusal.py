"""Why a node may not join a run, in the same words in both modes."""

from __future__ import annotations

from collections.abc import Sequence

from dtf_lightning.elastic.run.keys import RunInfo, RunView


def other_mode(run: RunInfo, mode: str) -> str:
    """How the run's mode differs from this node's; empty when it does not."""
    return "" if run.mode == mode else f"the run is in mode={run.mode}, this node in mode={mode}"


def may_not_join(view: RunView, others: Sequence[str], difference: str) -> str:
    """The refusal of a node that differs from the `others` that take part in the run."""
    return (
        f"this node may not join run {view.keys.run_id!r} (nodes: {', '.join(others)}): {difference}. "
        "Start it like the others, or give it a --rdzv-id of its own"
    )
