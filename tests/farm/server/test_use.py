"""What a task had asked for stands beside what it used."""

from __future__ import annotations

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.clock import poll_until
from dtf_lightning.farm.record.asked import pack
from dtf_lightning.farm.record.values import Envelope, TaskOutcome, TaskSpecification
from dtf_lightning.farm.rules.needs import Need
from dtf_lightning.farm.server.lists.use import use_of
from support.farm.server import DEADLINE


def envelope(*needs: Need, **fields) -> Envelope:
    asked = pack(TaskSpecification(command=("x",), needs=needs))
    told = {
        "started": 10.0,
        "ended": 14.0,
        "metrics": {"cpu_seconds": 6.0, "peak_memory": 3.0 * (1 << 20)},
        "asked": asked,
    }
    return Envelope(outcome=TaskOutcome.COMPLETED, attempt=1, revision=1, **told | fields)


ONE, TWO = Need(amounts={"cpu": 4, "memory": 16}), Need(amounts={"gpu": 1})


@pytest.mark.parametrize(
    ("needs", "fields", "told"),
    [
        ((ONE,), {}, {"requested": {"cpu": 4, "memory": 16}, "used": {"cpu": 1.5, "memory": 3.0}}),
        ((), {}, {"requested": {"cpu": 1}, "used": {"cpu": 1.5, "memory": 3.0}}),
        ((ONE,), {"ended": 10.0}, {"requested": {"cpu": 4, "memory": 16}, "used": {"memory": 3.0}}),
        (
            (ONE,),
            {"metrics": {"cpu_seconds": float("nan"), "peak_memory": 0.0}},
            {"requested": {"cpu": 4, "memory": 16}, "used": {}},
        ),
        ((ONE, TWO), {}, {}),  # nobody knows which of them was granted
        ((ONE,), {"asked": ""}, {}),
        ((ONE,), {"started": None, "ended": None}, {}),
    ],
)
def test_requests_beside_use(needs, fields, told):
    assert use_of(envelope(*needs, **fields)) == told


@pytest.mark.process
def test_a_command_shows_it(client, coordinator, worker, capsys):
    task = client.submit(["x"], needs={"cpu": 2})
    worker.end(worker.next(), cpu_seconds=1.5, peak_memory=3 << 30)
    poll_until(lambda: client.task(task).status == "completed", DEADLINE, "it to end")
    assert main(["farm", "task", task, "--farm", coordinator.url, "--token-file", str(coordinator.token_file)]) == 0
    said = capsys.readouterr().out
    assert "cores: asked 2 cores, used 1.5 on average" in said
    assert "memory: used 3 GiB at most" in said
