"""Section `logging` of `coordinator.yaml` and `worker.yaml`."""

from __future__ import annotations

from dataclasses import dataclass

from dtf_lightning.farm.json_logs import FORMATS, log_to_stderr
from dtf_lightning.settings.fields import check, check_types, setting


@dataclass(frozen=True, kw_only=True)
class LoggingSettings:
    """Section `logging`."""

    format: str = setting("text", "`text`, for people, or `json`: one object a line, for programs.")

    def __post_init__(self) -> None:
        check_types(self)
        check(self.format in FORMATS, f"format must be {' or '.join(FORMATS)}, got {self.format!r}")

    def begin(self, **always: str) -> None:
        """Let this process log so. `always`: what each record says in JSON, such as which worker it is."""
        log_to_stderr(self.format, **always)
