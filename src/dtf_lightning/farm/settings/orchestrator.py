"""Settings of jobs that are split over devices."""

from __future__ import annotations

from dataclasses import dataclass

from dtf_lightning.settings.fields import check, check_types, setting


@dataclass(frozen=True, kw_only=True)
class OrchestratorSettings:
    """Section `multi_device_orchestrator`."""

    enabled: bool = setting(True, "Whether jobs are split over devices; with `false` they are refused.")
    subtask_timeout: float = setting(
        3600.0, "Of one attempt at a subtask, of a job that says nothing else.", unit="seconds"
    )
    retry_failed_subtasks: bool = setting(
        True,
        "Whether a subtask that failed is tried again elsewhere, and its share of the inputs then cut into smaller ones for others, of a job "
        "that says nothing else.",
    )
    retry_limit: int = setting(3, "How often it is tried again, of a job that says nothing else.", unit="tries")
    default_priority: int = setting(0, "Of subtasks of a job that names none: that of any other task.")

    def __post_init__(self) -> None:
        check_types(self)
        check(self.subtask_timeout > 0, f"subtask_timeout must be positive, got {self.subtask_timeout:g} s")
        check(0 <= self.retry_limit <= 100, f"retry_limit must be from 0 to 100, got {self.retry_limit}")
