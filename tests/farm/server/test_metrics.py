"""A farm's metrics, as Prometheus reads them."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from dtf_lightning.clock import poll_until
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.rules.watching.measures import COUNTED, METRICS
from dtf_lightning.farm.server.watching import monitor
from support.farm.server import DEADLINE, PlayedWorker

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr(monitor, "INTERVAL", 0.05)


def read(client: Client) -> dict[tuple[str, str], float]:
    """(Name, the label's value) -> value, by Prometheus' own parser."""
    return {
        (sample.name, next((value for label, value in sample.labels.items() if label != "le"), "")): sample.value
        for family in text_string_to_metric_families(client.metrics())
        for sample in family.samples
        if "le" not in sample.labels
    }


def test_what_prometheus_reads(coordinator, client):
    """Before, while and after a task runs; a worker whose name is no plain word."""
    name = 'w"1\\\n2'
    worker = PlayedWorker((coordinator.url,), coordinator.token_file.read_text().strip(), name=name)
    try:
        worker.wait_until_welcome()
        task = client.submit(["x"])
        order = worker.next()
        worker.start(order)
        poll_until(lambda: read(client).get(("dtf_farm_tasks", "running")) == 1, DEADLINE, "a task that runs")
        worker.end(order)
        assert client.wait(task).status == "completed"
        poll_until(lambda: read(client).get(("dtf_farm_tasks_ended_total", "completed")) == 1, DEADLINE, "its end")
        told = read(client)
        assert told["dtf_farm_worker_connected", name] == 1
        assert (told["dtf_farm_coordinator_leads", ""], told["dtf_farm_coordinator_workers", ""]) == (1, 1)
        assert (told["dtf_farm_task_run_seconds_count", ""], told["dtf_farm_task_run_seconds_sum", ""]) == (1, 1.0)
        known = {metric.name for metric in (*METRICS.values(), *COUNTED)}
        families = {family.name.removesuffix("_created") for family in text_string_to_metric_families(client.metrics())}
        assert families <= known | {one.removesuffix("_total") for one in known}
    finally:
        worker.close()


def test_who_may(coordinator, client, tmp_path):
    """A viewer; neither a worker nor a stranger."""
    for role, may in (("viewer", True), ("worker", False)):
        file = tmp_path / role
        file.write_text(client.create_token(role, subject=role)["token"])
        file.chmod(0o600)
        with Client(coordinator.url, file) as other:
            if may:
                assert "dtf_farm_coordinator_leads" in other.metrics()
            else:
                with pytest.raises(FarmRefused, match=r"metrics\.get needs the role viewer"):
                    other.metrics()
