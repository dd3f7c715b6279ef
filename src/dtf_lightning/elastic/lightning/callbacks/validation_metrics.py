"""Which of the logged metrics are those of the present weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dtf_lightning.elastic.lightning.host.names import rank_zero_warn

if TYPE_CHECKING:
    import lightning.pytorch as pl

log = logging.getLogger("dtf_lightning")


class ValidationMetrics:
    """What validation logs belongs to the weights that were validated: between two validations it is left out.

    Args:
        monitors: metrics that a validation should log; what is wrong with one is said.
    """

    def __init__(self, monitors: Sequence[str]) -> None:
        self._monitors = monitors
        self.measured: set[str] = set()
        """Names of the metrics that validation logs."""
        self.validated_at = -1
        """Step of the last validation whose metrics count."""
        self._before: dict[str, Any] = {}

    def validation_begins(self, trainer: pl.Trainer) -> None:
        self._before = dict(trainer.callback_metrics)

    def validation_ends(self, trainer: pl.Trainer) -> None:
        before = self._before
        self.measured |= {name for name, value in trainer.callback_metrics.items() if value is not before.get(name)}

    def of(self, trainer: pl.Trainer, *, validated: bool) -> dict[str, float]:
        """The metrics of the present weights, which have just been `validated` or not."""
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}
        for monitor in self._monitors:
            if validated and monitor not in found:
                rank_zero_warn(
                    f"BestCheckpoints(monitor={monitor!r}): nothing of that name was logged (there are "
                    f"{', '.join(sorted(found)) or 'no metrics'}); this checkpoint cannot be among the best"
                )
            elif monitor in found and not math.isfinite(found[monitor]):
                log.info("%s is %s: this checkpoint cannot be among the best", monitor, found[monitor])
        return {name: value for name, value in found.items() if validated or name not in self.measured}
