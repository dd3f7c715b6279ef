"""These functions tell people why a worker has left the training loop."""

from __future__ import annotations

from typing import Any

from dtf_lightning.elastic.lightning.host.loops import stops_early
from dtf_lightning.elastic.lightning.host.names import EarlyStopping


def why_stopped_early(trainer: Any) -> str | None:
    """Return why training ends before its time; `None` if it does not."""
    if not stops_early(trainer):
        return None
    stoppers = [
        f"{type(callback).__name__}(monitor={callback.monitor!r})"
        for callback in trainer.callbacks
        if isinstance(callback, EarlyStopping) and callback.wait_count >= callback.patience
    ]
    return f"trainer.should_stop was set{' by ' + ', '.join(stoppers) if stoppers else ''}"


def why_stopped(trainer: Any) -> str:
    """Return why training ends here."""
    return why_stopped_early(trainer) or "training came to its end"
