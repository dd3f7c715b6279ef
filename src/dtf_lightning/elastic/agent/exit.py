"""An agent's end: why its node goes, and which exception torchelastic's main thread raises for it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dtf_lightning.errors import DtfError, RunAborted, RunRefused


class ExitReason(Enum):
    """The reason for which torchelastic's main thread must not go on."""

    LEFT = "left"  # on SIGTERM, Ctrl-C or drain, or the run is finished: exit with 0
    OUT_OF_TIME = "out of time"  # the grace period is over
    REFUSED = "refused"
    ABORTED = "aborted"
    BROKEN = "broken"  # a bug of ours


@dataclass(frozen=True, kw_only=True)
class Exit:
    """The end of an agent: its reason, and the time at which the main thread goes."""

    reason: ExitReason
    text: str
    """The reason as a sentence for people."""
    at: float
    """The latest time at which the main thread goes, even if workers have not ended by then, in monotonic seconds."""

    def exception(self) -> BaseException:
        """Return what the main thread raises: `SystemExit`, `RunRefused`, `RunAborted` or `DtfError`."""
        match self.reason:
            case ExitReason.LEFT:
                return SystemExit(0)
            case ExitReason.OUT_OF_TIME:
                return SystemExit(1)
            case ExitReason.REFUSED:
                return RunRefused(self.text)
            case ExitReason.ABORTED:
                return RunAborted(self.text)
            case ExitReason.BROKEN:
                return DtfError(self.text)
