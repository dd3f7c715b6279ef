"""Settings of a farm worker: the sections of `worker.yaml`, each with its checks.

`dtf farm worker --config worker.yaml` reads them; its options win over the file. A relative path lies in the folder of the
file, or where there is none in the working folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from dtf_lightning.farm.settings.logs import LoggingSettings
from dtf_lightning.settings.fields import check, check_types, setting
from dtf_lightning.settings.sections import SettingsFile


@dataclass(frozen=True, kw_only=True)
class WorkerIdentity:
    """Section `worker`."""

    id: str | None = setting(None, "Its name in the farm, which no other worker may have; without it the machine's.")
    name: str | None = setting(None, "What people call it: the label `name=...`.")
    hardware_id: str | None = setting(None, "What the farm shows as its hardware; without it the machine's name.")
    labels: tuple[str, ...] = setting((), "What tasks may ask for, beside the labels that are found out.")
    cpus: float | None = setting(None, "Cores that it offers; without it all.", unit="cores")
    memory: float | None = setting(
        None, "Memory that it offers; without it what the machine has beside a reserve.", unit="MiB"
    )

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("cpus", "memory"):
            amount = getattr(self, name)
            check(amount is None or amount > 0, f"{name} must be positive, got {amount}")


@dataclass(frozen=True, kw_only=True)
class CoordinatorConnection:
    """Section `coordinator`."""

    url: str | None = setting(
        None, "Of one coordinator or more, with commas; without it `$DTF_FARM_URL`, else the farm that runs here."
    )
    token_file: str | None = setting(
        None, "File with the farm's token, or one to join with; only its owner may read it."
    )
    api_key: str | None = setting(
        None,
        "The token itself, where there is no `token_file`: write `${VARIABLE}`, since others may read a settings file. Tasks do not "
        "get that variable.",
        secret=True,
    )

    ca_cert: str | None = setting(
        None, "File (PEM) of the authority of the coordinators' certificates; without it those that the machine knows."
    )
    cert: str | None = setting(None, "The worker's own certificate (PEM), for farms that ask for one; needs `key`.")
    key: str | None = setting(None, "That certificate's private key (PEM); needs `cert`.")

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True)
class ExecutionSettings:
    """Section `execution`."""

    concurrent_tasks: int | None = setting(
        None,
        "Tasks of one core each (what a task needs that says nothing) that run at once: cores that it offers, where that is "
        "fewer than it has.",
        unit="tasks",
    )
    timeout: float | None = setting(
        None, "Of an attempt whose task has none of its own; without it none.", unit="seconds"
    )
    working_dir: str | None = setting(None, "Where it works and keeps results; without it in the farm's home.")
    cache_dir: str | None = setting(
        None, "Of inputs, environments and libraries' caches; without it `cache` in `working_dir`."
    )
    secrets_dir: str | None = setting(
        None, "Folder of the secrets that it gives to tasks which name them, one in a file."
    )
    allow_pickle: bool | None = setting(
        None,
        "Whether it runs functions that travel by cloudpickle; without it what the coordinators allow "
        "(`security.allow_pickle` of coordinator.yaml).",
    )
    until_idle: float | None = setting(
        None, "For which it has had no task when it leaves, as a pilot job does; without it it stays.", unit="seconds"
    )
    cache_limit: float = setting(20.0, "Of inputs and what tasks download, kept for the next tasks.", unit="GiB")

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("concurrent_tasks", "timeout", "until_idle", "cache_limit"):
            value = getattr(self, name)
            check(value is None or value > 0, f"{name} must be positive, got {value}")


@dataclass(frozen=True, kw_only=True)
class ReportingSettings:
    """Section `reporting`."""

    metrics_interval: float = setting(15.0, "Between two samples of an attempt's `hardware_metrics`.", unit="seconds")

    def __post_init__(self) -> None:
        check_types(self)
        check(self.metrics_interval >= 1, f"metrics_interval must be at least 1 s, got {self.metrics_interval:g} s")


@dataclass(frozen=True, kw_only=True)
class HealthSettings:
    """Section `health`."""

    report_interval: float = setting(30.0, "Between two reports of the worker's health.", unit="seconds")
    cpu_threshold: float = setting(
        90.0, "Use of its processor above which it says that it is in want.", unit="per cent"
    )
    memory_threshold: float = setting(90.0, "The same of its memory.", unit="per cent")
    disk_threshold: float = setting(90.0, "The same of the disk on which it works.", unit="per cent")

    def __post_init__(self) -> None:
        check_types(self)
        check(self.report_interval >= 1, f"report_interval must be at least 1 s, got {self.report_interval:g} s")
        for name in ("cpu_threshold", "memory_threshold", "disk_threshold"):
            value = getattr(self, name)
            check(0 < value <= 100, f"{name} must be a percentage above 0, got {value:g}")


WITHOUT_EFFECT: Mapping[str, str] = {
    "reporting.result_batch_size": "every result is sent as soon as its attempt has ended, and the coordinator writes many at once",
}
"""Keys that were asked for and that mean nothing here -> what takes their place."""

VARIABLES: Mapping[str, str] = {
    "WORKER_ID": "worker.id",
    "COORDINATOR_URL": "coordinator.url",
    "WORKER_API_KEY": "coordinator.api_key",
}
"""Environment variable -> the key whose value it says: many workers have one file, and each its own name."""

OF_COORDINATORS = ("JWT_SECRET",)
"""Variables of coordinators' secrets: a worker that was started beside one must not hand them on to tasks."""


@dataclass(frozen=True, kw_only=True)
class WorkerSettings(SettingsFile):
    """All of `worker.yaml`."""

    without_effect = WITHOUT_EFFECT
    variables = VARIABLES

    worker: WorkerIdentity = field(default_factory=WorkerIdentity)
    coordinator: CoordinatorConnection = field(default_factory=CoordinatorConnection)
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)
    reporting: ReportingSettings = field(default_factory=ReportingSettings)
    health: HealthSettings = field(default_factory=HealthSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
