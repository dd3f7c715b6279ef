"""Settings of a coordinator: the sections of `coordinator.yaml`, each with its checks.

`dtf farm coordinator --config coordinator.yaml` reads them; its options win over the file. A relative path lies in the
folder of the file, or where there is none in the working folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dtf_lightning.farm.security.keys import SharedSecret
from dtf_lightning.farm.security.sealing.sources import KeySource
from dtf_lightning.farm.settings.alerts import AlertSettings
from dtf_lightning.farm.settings.hosts import is_remote, local_path
from dtf_lightning.farm.settings.logs import LoggingSettings
from dtf_lightning.farm.settings.orchestrator import OrchestratorSettings
from dtf_lightning.settings.fields import check, check_types, setting
from dtf_lightning.settings.sections import SettingsFile

PORT = 8080


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """Section `server`."""

    host: str = setting(
        "127.0.0.1", "Where it listens: this machine's loopback; with a certificate anything, such as `0.0.0.0`."
    )
    port: int = setting(PORT, "Serves clients, workers and the page; 0 takes a free one.")
    workers_port: int | None = setting(None, "A second port, for workers; everything is served on each.")
    dashboard_port: int | None = setting(None, "A third port, for the page.")
    advertise: str = setting(
        "",
        "Where workers and clients reach it, if not where it listens: its name, the near end of a tunnel or a proxy, as a URL.",
    )

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("port", "workers_port", "dashboard_port"):
            port = getattr(self, name)
            check(port is None or 0 <= port < 65536, f"{name} must be a port or 0, got {port}")

    @property
    def more_ports(self) -> tuple[int, ...]:
        """Those beside `port`, each once."""
        named = dict.fromkeys(port for port in (self.workers_port, self.dashboard_port) if port is not None)
        return tuple(port for port in named if port != self.port or port == 0)


@dataclass(frozen=True, kw_only=True)
class DatabaseSettings:
    """Section `database`."""

    type: str = setting("duckdb", "The only one there is.")
    path: str | None = setting(
        None,
        "This coordinator's database of results, its own file; without it `results-<coordinator>.duckdb` in the folder.",
    )

    def __post_init__(self) -> None:
        check_types(self)
        check(self.type == "duckdb", f"type must be duckdb, got {self.type!r}: results are kept in DuckDB")


@dataclass(frozen=True, kw_only=True)
class SecuritySettings:
    """Section `security`."""

    token_file: str | None = setting(
        None, "File with the token that every request must bear; made if it is not there, for its owner alone."
    )
    tls_cert: str | None = setting(
        None, "File (PEM) of the coordinator's certificate, with those between it and its authority; needs `tls_key`."
    )
    tls_key: str | None = setting(None, "That certificate's private key (PEM), without a password; needs `tls_cert`.")
    client_ca: str | None = setting(
        None, "File (PEM) of the authority of workers' certificates: without such a one no worker is taken."
    )
    insecure: bool = setting(
        False, "Whether it may listen on more than the loopback without TLS: others can read the tokens then."
    )
    jwt_secret: str | None = setting(
        None,
        "Secret (32 bytes at least) by which others make tokens for this farm, signed by HS256, beside those that the farm makes: write "
        "`${JWT_SECRET}`. Who has it can be anybody here.",
        secret=True,
    )
    allow_pickle: bool = setting(
        False,
        "Whether clients may submit functions that travel by cloudpickle: what they hold runs where it is read. Functions that "
        "are called by their names need no leave.",
    )

    def __post_init__(self) -> None:
        check_types(self)
        check(
            (self.tls_cert is None) == (self.tls_key is None),
            f"{'tls_cert' if self.tls_cert else 'tls_key'} was given alone: TLS needs tls_cert and tls_key",
        )
        check(
            self.client_ca is None or self.tls_cert is not None,
            "client_ca needs tls_cert and tls_key: certificates are shown over TLS alone",
        )
        if self.jwt_secret is not None:
            SharedSecret(secret=self.jwt_secret.encode())


@dataclass(frozen=True, kw_only=True)
class SecretSettings:
    """Section `secrets`: the keys with which the farm seals the secrets that it keeps for tasks. One of these, or none."""

    key_file: str | None = setting(
        None,
        "File of keys (`dtf farm secret new-key` makes it), which its owner alone may read; the same on every coordinator's machine.",
    )
    key: str | None = setting(
        None, "The keys themselves, with commas between them: write `${VARIABLE}`, since others may read a settings file.",
        secret=True,
    )  # fmt: skip
    key_command: tuple[str, ...] = setting(
        (), "Command that prints the keys, as a key management service opens them; it is run without a shell."
    )

    def __post_init__(self) -> None:
        check_types(self)
        given = [name for name in ("key_file", "key", "key_command") if getattr(self, name)]
        check(
            len(given) < 2,
            f"{given[-1] if given else ''} and {given[0] if given else ''} are both given: keys come from one place",
        )


@dataclass(frozen=True, kw_only=True)
class LimitSettings:
    """Section `limits`: counted by each coordinator for itself."""

    requests_per_second: float = setting(
        500.0, "Of one token at one address, for long; what workers bring is not counted.", unit="requests a second"
    )
    burst: int = setting(5000, "Requests beyond that at once, after a pause.", unit="requests")
    strangers_per_second: float = setting(
        20.0, "Of one address with a token that was not good there before, or with none.", unit="requests a second"
    )
    strangers_burst: int = setting(500, "Such ones at once, after a pause.", unit="requests")
    request_size: float = setting(64.0, "Of a request's body, but for files.", unit="MiB")
    source_size: float = setting(512.0, "Of files that commands take along, and of an input.", unit="MiB")
    connections: int = setting(
        10_000, "Open at once, workers' among them; never more than the process may have files, less 256."
    )
    connections_per_address: int = setting(2000, "Of these from one address.")

    def __post_init__(self) -> None:
        check_types(self)
        for name in (
            "requests_per_second",
            "strangers_per_second",
            "request_size",
            "source_size",
        ):
            check(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name):g}")
        for name in ("burst", "strangers_burst", "connections", "connections_per_address"):
            check(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class TaskSchedulerSettings:
    """Section `task_scheduler`."""

    max_queue_size: int = setting(
        200_000, "Tasks that are not done, above which no more are taken (429). Each costs some 3 KB in every coordinator.",
        unit="tasks",
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_types(self)
        check(self.max_queue_size >= 1, f"max_queue_size must be at least 1, got {self.max_queue_size}")


@dataclass(frozen=True, kw_only=True)
class LoadBalancerSettings:
    """Section `load_balancer`."""

    strategy: str = setting(
        "fair_share",
        "Which worker takes a task if several have room: `fair_share`, `least_loaded`, `cheapest`, `fastest`, `locality`, "
        "`round_robin`, or one that an installed package adds.",
    )

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True)
class HealthMonitorSettings:
    """Section `health_monitor`."""

    worker_grace: float = setting(
        4.0, "For which a worker may be without a connection before its tasks go elsewhere.", unit="seconds"
    )

    def __post_init__(self) -> None:
        check_types(self)
        check(self.worker_grace > 0, f"worker_grace must be positive, got {self.worker_grace:g} s")


@dataclass(frozen=True, kw_only=True)
class RecoverySettings:
    """Section `recovery`."""

    dry_run: bool = setting(
        True,
        "Whether the farm only says what it would do by itself. `false`: the leader cordons a worker on which tests fail that pass "
        "elsewhere.",
    )

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True)
class ScalingSettings:
    """Section `scaling`."""

    pools: str | None = setting(
        None, "File of the pools whose workers the farm starts and drains by itself; without it none."
    )
    dry_run: bool = setting(
        True,
        "Whether the farm only says what it would do (`dtf farm scaling`). `false`: the leader starts and drains workers.",
    )
    interval: float = setting(10.0, "Between two looks at what waits.", unit="seconds")

    def __post_init__(self) -> None:
        check_types(self)
        check(self.interval > 0, f"interval must be positive, got {self.interval:g} s")


@dataclass(frozen=True, kw_only=True)
class HighAvailabilitySettings:
    """Section `high_availability`."""

    coordinator_id: str | None = setting(None, "This coordinator's name; without it the machine's.")

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True)
class FarmSettings:
    """Section `farm`."""

    name: str = setting("farm", "One etcd can hold several farms.")
    folder: str | None = setting(
        None, "Of the farm's files; all its coordinators share it. Required, here or as `--folder`."
    )
    shared: bool = setting(
        False,
        "Whether `folder`, and other local paths here, is one folder that all hosts with a coordinator have mounted.",
    )

    def __post_init__(self) -> None:
        check_types(self)
        check(bool(self.name), "name of the farm is empty; expected a word such as 'lab'")


@dataclass(frozen=True, kw_only=True)
class EtcdSettings:
    """Section `etcd`."""

    endpoint: str | None = setting(
        None, "`host:port`, several with commas, `https://...` or `unix:PATH`; without it `$DTF_ETCD_ENDPOINT`, else "
        "`127.0.0.1:2379`.",
    )  # fmt: skip
    ca_cert: str | None = setting(None, "Path of the certificate (PEM) that signed etcd's; turns TLS on.")
    cert: str | None = setting(None, "Path of the client certificate (PEM); needs `key`.")
    key: str | None = setting(None, "Path of the client certificate's private key (PEM); needs `cert`.")
    server_name: str | None = setting(
        None, "The name that etcd's certificate must carry, if it is not the endpoint's host."
    )
    user: str | None = setting(None, "etcd user; needs `password_file`.")
    password_file: str | None = setting(None, "Path of a file that holds the etcd user's password and nothing else.")
    quota: float = setting(
        2048.0,
        "etcd's `--quota-backend-bytes` (2 GiB where it is not given): at three quarters of it new work is refused.",
        unit="MiB",
    )

    def __post_init__(self) -> None:
        check_types(self)
        check(self.quota > 0, f"quota must be positive, got {self.quota:g} MiB")


@dataclass(frozen=True, kw_only=True)
class ArchiveUrl:
    """Section `archive`."""

    url: str = setting(
        "", "Folder or fsspec URL of the Parquet archive of results; without it `archive` in the farm's folder."
    )

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True)
class ArtifactSettings:
    """Section `artifacts`."""

    url: str = setting(
        "", "Folder or fsspec URL of the files that tasks leave; without it `artifacts` in the farm's folder."
    )
    max_size: float = setting(1024.0, "Size above which a file is not stored, and named as missing.", unit="MiB")

    def __post_init__(self) -> None:
        check_types(self)
        check(self.max_size > 0, f"max_size must be positive, got {self.max_size:g} MiB")


SKEW = 3600.0
"""Seconds by which clocks of clients and coordinators may differ."""
DAY = 86400.0


@dataclass(frozen=True, kw_only=True)
class RetentionSettings:
    """Section `retention`."""

    results: float = setting(600.0, "For which etcd keeps a result that is in the archive.", unit="seconds")
    ids: float = setting(
        7 * DAY, "For which a task may be submitted under an id, from the time that it bears.", unit="seconds"
    )
    tombstones: float | None = setting(
        None,
        "For which an archived task's id stays known, two hours longer than `ids` at least, so that submitting twice stays once; "
        "without it a day longer. Each is 200 bytes of etcd's quota.",
        unit="seconds",
    )
    logs: float = setting(30 * DAY, "For which the output of a task is kept.", unit="seconds")
    logs_total: float | None = setting(None, "All output together; the oldest goes first.", unit="GiB")
    artifacts: float = setting(90 * DAY, "For which files that a task has left are kept.", unit="seconds")
    artifacts_total: float | None = setting(None, "All of these together; the oldest go first.", unit="GiB")
    sources: float = setting(
        7 * DAY, "For which the files that commands take along are kept after their last use.", unit="seconds"
    )
    sources_total: float | None = setting(None, "All of these together; the oldest go first.", unit="GiB")
    interval: float = setting(600.0, "Between two looks at files that may go.", unit="seconds")

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("results", "ids", "logs", "artifacts", "sources", "interval"):
            check(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name):g} s")
        for name in ("logs_total", "artifacts_total", "sources_total"):
            total = getattr(self, name)
            check(total is None or total >= 0, f"{name} must not be negative, got {total} GiB")
        check(
            self.tombstones is None or self.tombstones >= self.ids + 2 * SKEW,
            f"tombstones ({self.tombstones or 0:g} s) must exceed ids ({self.ids:g} s) by twice what clocks may differ "
            f"({2 * SKEW:g} s), or a task could be accepted twice: raise tombstones or lower ids",
        )

    @property
    def tombstones_kept(self) -> float:
        """Seconds for which an archived task's id stays known."""
        return self.tombstones if self.tombstones is not None else self.ids + DAY


_ETCD = "etcd elects, replicates and keeps the quorum; say where it is with `etcd.endpoint`"
_TOKEN = (
    "the farm signs tokens with keys of its own (`dtf farm token`), good for as long as `dtf farm token create --for` says; "
    "its own token lies in `security.token_file`"
)
_MACHINES = "the farm starts and drains workers by the section `scaling`, whose pools have a file of their own"
_SPLIT = (
    "models are not split into stages yet; inputs, functions and models of an ensemble are (`dtf farm orchestrate`)"
)
_QUERIES = "ask the results by SQL (`dtf farm results query`)"
_HEALTH = "a worker is lost when its connection is: `health_monitor.worker_grace`; it reports its health by `health.report_interval` of worker.yaml"
_CAPS = "a worker takes what it offers: `execution.concurrent_tasks` of worker.yaml, and `limits` of a plan"

WITHOUT_EFFECT: Mapping[str, str] = {
    "security.token_expiry": _TOKEN,
    "dynamic_resource_management.enabled": _MACHINES,
    "dynamic_resource_management.scale_up_threshold": _MACHINES,
    "dynamic_resource_management.scale_down_threshold": _MACHINES,
    "dynamic_resource_management.evaluation_interval": _MACHINES,
    "multi_device_orchestrator.model_parallel_auto_splitting": _SPLIT,
    "result_aggregator.cache_ttl": _QUERIES,
    "result_aggregator.anomaly_threshold": _QUERIES,
    "result_aggregator.comparative_lookback_days": _QUERIES,
    "health_monitor.check_interval": _HEALTH,
    "health_monitor.failure_threshold": _HEALTH,
    "health_monitor.recovery_attempts": _HEALTH,
    "load_balancer.worker_cap": _CAPS,
    "load_balancer.task_cap_per_worker": _CAPS,
    "high_availability.enabled": _ETCD,
    "high_availability.peers": _ETCD,
    "high_availability.election_timeout_min": _ETCD,
    "high_availability.election_timeout_max": _ETCD,
    "high_availability.heartbeat_interval": _ETCD,
    "high_availability.state_replication_interval": _ETCD,
    "high_availability.health_check_interval": _ETCD,
    "high_availability.quorum_size": _ETCD,
    "high_availability.state_snapshot_interval": _ETCD,
    "high_availability.leader_lease_duration": _ETCD,
}
"""Keys that were asked for and that mean nothing here -> what takes their place."""

VARIABLES: Mapping[str, str] = {
    "JWT_SECRET": "security.jwt_secret",
    "COORDINATOR_ID": "high_availability.coordinator_id",
    "ENABLE_HIGH_AVAILABILITY": "high_availability.enabled",
    "HIGH_AVAILABILITY_PEERS": "high_availability.peers",
}
"""Environment variable -> the key whose value it says: many coordinators have one file, and each its own name."""


@dataclass(frozen=True, kw_only=True)
class CoordinatorSettings(SettingsFile):
    """All of `coordinator.yaml`."""

    without_effect = WITHOUT_EFFECT
    variables = VARIABLES

    server: ServerSettings = field(default_factory=ServerSettings)
    farm: FarmSettings = field(default_factory=FarmSettings)
    etcd: EtcdSettings = field(default_factory=EtcdSettings)
    database: DatabaseSettings = field(default_factory=DatabaseSettings)
    archive: ArchiveUrl = field(default_factory=ArchiveUrl)
    artifacts: ArtifactSettings = field(default_factory=ArtifactSettings)
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    security: SecuritySettings = field(default_factory=SecuritySettings)
    secrets: SecretSettings = field(default_factory=SecretSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    task_scheduler: TaskSchedulerSettings = field(default_factory=TaskSchedulerSettings)
    load_balancer: LoadBalancerSettings = field(default_factory=LoadBalancerSettings)
    health_monitor: HealthMonitorSettings = field(default_factory=HealthMonitorSettings)
    multi_device_orchestrator: OrchestratorSettings = field(default_factory=OrchestratorSettings)
    recovery: RecoverySettings = field(default_factory=RecoverySettings)
    scaling: ScalingSettings = field(default_factory=ScalingSettings)
    alerts: AlertSettings = field(default_factory=AlertSettings)
    logging: LoggingSettings = field(default_factory=LoggingSettings)
    high_availability: HighAvailabilitySettings = field(default_factory=HighAvailabilitySettings)

    def place(self, url: str, otherwise: Path) -> str:
        """Return a folder or an fsspec URL of the settings, a folder as an absolute path; `otherwise` where it is ""."""
        if not url:
            return str(otherwise)
        return url if is_remote(url) else str(self.path(str(local_path(url))))

    def places(self, folder: Path) -> dict[str, str]:
        """Return where this farm stores things, by key. `folder`: the farm's."""
        return {
            "farm.folder": str(folder),
            "archive.url": self.place(self.archive.url, folder / "archive"),
            "artifacts.url": self.place(self.artifacts.url, folder / "artifacts"),
        }

    @property
    def tls_files(self) -> tuple[Path, Path, Path | None] | None:
        """Files of the certificate, its key, and the authority of clients' certificates; `None`: no TLS."""
        told = self.security
        if told.tls_cert is None or told.tls_key is None:
            return None
        return self.path(told.tls_cert), self.path(told.tls_key), self.path(told.client_ca) if told.client_ca else None

    @property
    def shared_secret(self) -> SharedSecret | None:
        """By which others make tokens for this farm; `None`: nobody does."""
        told = self.security.jwt_secret
        return None if told is None else SharedSecret(secret=told.encode())

    @property
    def secrets_source(self) -> KeySource:
        """Where the keys of the secrets' store come from."""
        told = self.secrets
        file = self.path(told.key_file) if told.key_file else None
        return KeySource(file=file, text=told.key, command=told.key_command)

    @property
    def database_file(self) -> Path | None:
        """The file of the results' database, where the settings say which."""
        return self.path(self.database.path) if self.database.path else None
