"""The files of settings that were asked for load as they stand there, letter by letter."""

from __future__ import annotations

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.settings.coordinator import CoordinatorSettings
from dtf_lightning.farm.settings.worker import WorkerSettings

COORDINATOR = """\
# coordinator.yaml
server:
  host: "0.0.0.0"
  port: 8080
  workers_port: 8081
  dashboard_port: 8082

database:
  type: "duckdb"
  path: "./benchmark_db.duckdb"
  
security:
  jwt_secret: "${JWT_SECRET}"
  token_expiry: 86400
  
task_scheduler:
  max_queue_size: 1000
  
dynamic_resource_management:
  enabled: true
  scale_up_threshold: 0.8
  scale_down_threshold: 0.3
  evaluation_interval: 300
  
multi_device_orchestrator:
  enabled: true
  subtask_timeout: 3600
  retry_failed_subtasks: true
  model_parallel_auto_splitting: true
  default_priority: 5
  retry_limit: 3
  
result_aggregator:
  cache_ttl: 300
  anomaly_threshold: 2.5
  comparative_lookback_days: 7
  
health_monitor:
  check_interval: 30
  failure_threshold: 3
  recovery_attempts: 2
  
load_balancer:
  strategy: "fair_share"
  worker_cap: 10
  task_cap_per_worker: 5
"""

HIGH_AVAILABILITY = """\
# coordinator.yaml
high_availability:
  enabled: true
  coordinator_id: "coordinator-1"
  peers:
    - id: "coordinator-2"
      host: "coordinator-2.example.com"
      port: 8080
    - id: "coordinator-3"
      host: "coordinator-3.example.com"
      port: 8080
  election_timeout_min: 150
  election_timeout_max: 300
  heartbeat_interval: 50
  state_replication_interval: 1000
  health_check_interval: 5000
  quorum_size: 2
  state_snapshot_interval: 60000
  leader_lease_duration: 10000
"""

WORKER = """\
# worker.yaml
worker:
  id: "worker-1"
  name: "GPU Worker 1"
  hardware_id: "nvidia-a100"
  
coordinator:
  url: "https://coordinator.example.com:8081"
  api_key: "${WORKER_API_KEY}"
  
execution:
  concurrent_tasks: 4
  timeout: 3600
  working_dir: "./tasks"
  cache_dir: "./cache"
  
reporting:
  metrics_interval: 15
  result_batch_size: 10
  
health:
  report_interval: 30
  cpu_threshold: 90
  memory_threshold: 90
  disk_threshold: 90
"""


SECRET = "a-secret-that-nobody-guesses-in-a-hurry"


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setenv("WORKER_API_KEY", "a-token")
    monkeypatch.setenv("JWT_SECRET", SECRET)

    def read(cls, text, given=None):
        path = tmp_path / "settings.yaml"
        path.write_text(text)
        return cls.load(path, given)

    return read


def test_a_coordinators(load):
    """What has a meaning here takes effect."""
    settings = load(CoordinatorSettings, COORDINATOR)
    assert (settings.server.host, settings.server.port, settings.server.more_ports) == ("0.0.0.0", 8080, (8081, 8082))
    assert settings.database_file == settings.beside / "benchmark_db.duckdb"
    assert settings.task_scheduler.max_queue_size == 1000
    assert settings.load_balancer.strategy == "fair_share"
    assert settings.shared_secret.secret == SECRET.encode()
    assert SECRET not in repr(settings.shared_secret)


def test_a_secret_that_can_be_guessed(load, monkeypatch):
    monkeypatch.setenv("JWT_SECRET", "hunter2")
    with pytest.raises(SettingsError, match="jwt_secret has 7 bytes, and HS256 needs 32") as caught:
        load(CoordinatorSettings, COORDINATOR)
    assert "hunter2" not in str(caught.value)


def test_what_takes_the_place_of_keys_without_effect(load):
    """One warning for each thing that replaces some of them, with the place of the first."""
    warnings = load(CoordinatorSettings, COORDINATOR).warnings
    tokens, machines, *_ = warnings
    assert len(warnings) == 6
    assert "settings.yaml:14: security.token_expiry has no effect here:" in tokens
    assert "`security.token_file`" in tokens
    assert "the section `scaling`" in machines


def test_high_availability(load):
    """Its name is this coordinator's; all that etcd does is one warning that says so."""
    settings = load(CoordinatorSettings, HIGH_AVAILABILITY)
    assert settings.high_availability.coordinator_id == "coordinator-1"
    (warning,) = settings.warnings
    assert "high_availability.election_timeout_min, high_availability.election_timeout_max" in warning
    assert warning.endswith(
        "have no effect here: etcd elects, replicates and keeps the quorum; say where it is with `etcd.endpoint`"
    )


def test_a_workers(load):
    settings = load(WorkerSettings, WORKER)
    assert (settings.worker.id, settings.worker.name, settings.worker.hardware_id) == (
        "worker-1",
        "GPU Worker 1",
        "nvidia-a100",
    )
    assert settings.coordinator.url == "https://coordinator.example.com:8081"
    assert settings.coordinator.api_key == "a-token"
    assert (settings.execution.concurrent_tasks, settings.execution.timeout) == (4, 3600.0)
    assert settings.path(settings.execution.working_dir) == settings.beside / "tasks"
    assert settings.path(settings.execution.cache_dir) == settings.beside / "cache"
    assert settings.reporting.metrics_interval == 15
    assert (settings.health.report_interval, settings.health.disk_threshold) == (30, 90)
    (warning,) = settings.warnings
    assert "reporting.result_batch_size has no effect here" in warning


def test_a_variable_that_is_not_set(load, monkeypatch):
    monkeypatch.delenv("WORKER_API_KEY")
    with pytest.raises(SettingsError, match=r"settings.yaml:9:12: the environment variable WORKER_API_KEY is not set"):
        load(WorkerSettings, WORKER)


def test_options_win_over_the_file(load, monkeypatch):
    """What an option says is not looked at in the file: its variable need not be set."""
    monkeypatch.delenv("WORKER_API_KEY")
    given = {"coordinator.api_key": "given", "execution.timeout": 5.0, "worker.id": None}
    settings = load(WorkerSettings, WORKER, given)
    assert (settings.coordinator.api_key, settings.execution.timeout, settings.worker.id) == ("given", 5.0, "worker-1")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("servers:\n  port: 1\n", r":1:1: unknown key 'servers' in the settings; did you mean 'server'\?"),
        ("server:\n  prot: 1\n", r":2:3: unknown key 'prot' in server; did you mean 'port'\?"),
        ("server:\n  port: many\n", r":2:9: port must be a whole number, got 'many'"),
        ("server:\n  port: 70000\n", r":2:9: port must be a port or 0, got 70000"),
        ("server: 8080\n", r":1:9: server is a mapping \(key: value\), got 8080"),
        ("server:\n  port: [1]\n", r":2:9: port is a text or a number, got a list"),
        ("database:\n  type: postgres\n", r":2:9: type must be duckdb, got 'postgres'"),
        ("high_availability:\n  qorum_size: 2\n", r":2:3: unknown key 'qorum_size' .*'quorum_size'"),
        ("server:\n  host: ${A B}\n", r":2:9: '\${A B}' names no environment variable"),
        ("", r":1:1: the file is empty"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(load, text, said):
    with pytest.raises(SettingsError, match=said):
        load(CoordinatorSettings, text)


def test_without_a_file():
    """Defaults, and what a command was given; port 8080."""
    assert CoordinatorSettings.load().server.port == 8080
    assert CoordinatorSettings.load(given={"server.port": 0}).server.port == 0
    assert WorkerSettings.load().warnings == ()


def test_a_strategy_that_nobody_has(load):
    """It is looked up where the coordinator starts, since packages add some."""
    assert load(CoordinatorSettings, "load_balancer:\n  strategy: mine\n").load_balancer.strategy == "mine"
