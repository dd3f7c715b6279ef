"""What a coordinator finds wrong with its farm: on its page, in its API, and by `dtf farm health`."""

from __future__ import annotations

import contextlib
import json

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.clock import poll_until
from dtf_lightning.farm.cli.page import commands
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.rules.watching import remedies
from dtf_lightning.farm.server.watching import monitor
from support.farm.browsing import Browsing
from support.farm.server import DEADLINE, CoordinatorInThread, PlayedWorker

pytestmark = pytest.mark.process


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    """It looks at once, and asks the results each time."""
    monkeypatch.setattr(monitor, "INTERVAL", 0.05)
    monkeypatch.setattr(monitor, "ERRORS_EVERY", 1)


class Well:
    """A farm with which nothing is wrong."""

    def health(self) -> dict:
        return {"health": "healthy", "findings": [], "changes": [], "remedies": []}


def kinds(client) -> dict[str, str]:
    return {one["kind"]: one["subject"] for one in client.health()["findings"]}


def until(client, kind: str, there: bool = True) -> None:
    poll_until(lambda: (kind in kinds(client)) is there, DEADLINE, lambda: f"{kind}: {kinds(client)}")


def test_it_begins_and_is_over(client, coordinator, capsys, monkeypatch):
    """A task that no worker could do: a warning on three screens and for a command, which is over when the task is."""
    farm = ["--farm", coordinator.url, "--token-file", str(coordinator.token_file)]
    until(client, "no_leader", there=False)
    task = client.submit(["x"], needs={"gpu": 64})
    with_worker = PlayedWorker((coordinator.url,), coordinator.token_file.read_text().strip(), name="lone", cpu=1.0)
    try:
        with_worker.wait_until_welcome()
        until(client, "queue_lacking")
        assert main(["farm", "health", *farm]) in (1, 3)  # this machine may be busy, which is a finding, too
        assert f"warning: gpu: the task {task} waits for what no worker has" in capsys.readouterr().out
        code = main(["farm", "health", "--json", *farm])
        assert code == {"warning": 3, "critical": 1}[json.loads(capsys.readouterr().out)["health"]]
        page = Browsing(coordinator.url, coordinator.token_file.read_text().strip())
        for path in ("/", "/fleet"):
            assert "queue_lacking" in [one["kind"] for one in page.data(path)["findings"]]
            assert "Start a worker that has it" in page.get(path).text
        client.cancel(task)
        until(client, "queue_lacking", there=False)
        monkeypatch.setattr(commands, "connect", lambda _: contextlib.nullcontext(Well()))
        assert main(["farm", "health"]) == 0
        assert capsys.readouterr().out.startswith("healthy")
        changes = [
            (one["before"], one["after"]) for one in client.health()["changes"] if one["kind"] == "queue_lacking"
        ]
        assert changes[0] == ("warning", "healthy")
        assert "queue_lacking" in page.get("/cluster", format="csv", table="changes").text
    finally:
        with_worker.close()
    until(client, "worker_gone")
    assert kinds(client)["worker_gone"] == "lone"


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_worker_on_which_much_fails_alone(memory, tmp_path, monkeypatch, dry_run):
    """Three tests fail on it and pass on another one, where they are tried again. The farm says so, and cordons it; who undoes that
    has his way. In a dry run it only says what it would do."""
    monkeypatch.setattr(remedies, "LASTED", 0.0)
    with contextlib.ExitStack() as stack:
        coordinator = CoordinatorInThread(memory, tmp_path, settings={"recovery.dry_run": dry_run})
        stack.callback(coordinator.stop)
        client = stack.enter_context(coordinator.client())
        workers = []
        for name, amount in (("sick", 3.0), ("good", 9.0)):
            token = coordinator.token_file.read_text().strip()
            workers.append(PlayedWorker((coordinator.url,), token, name=name, sick=amount))
            stack.callback(workers[-1].close)
            workers[-1].wait_until_welcome()
            if name == "sick":
                for number in range(3):
                    client.submit(["x"], name=f"test {number}", needs={"sick": 1}, retries=1)
                orders = [workers[0].next() for _ in range(3)]
        sick, good = workers
        for number in range(9):
            client.submit(["x"], name=f"other {number}", needs={"sick": 1})
            good.end(good.next())
        for order in orders:
            sick.end(order, OutcomeKind.FAILED, reason="exit code 1")
            good.end(good.next())
        until(client, "worker_errors")
        (found,) = (one for one in client.health()["findings"] if one["kind"] == "worker_errors")
        assert (found["subject"], "3 tests failed here that passed elsewhere" in found["reason"]) == ("sick", True)
        poll_until(lambda: client.health()["remedies"], DEADLINE, "a remedy")
        (done,) = client.health()["remedies"]
        assert (done["subject"], done["dry_run"], done["undo"]) == ("sick", dry_run, "dtf farm uncordon sick")
        poll_until(lambda: bool(cordoned_for(client)) is not dry_run, DEADLINE, "the record to show it")
        assert ("by the farm" in Browsing(coordinator.url, token).get("/fleet").text) is not dry_run
        client.change_worker("sick", "uncordon")
        before = client.health()["timestamp"]
        poll_until(lambda: client.health()["timestamp"] > before, DEADLINE, "another look")
        assert (cordoned_for(client), len(client.health()["remedies"])) == (None, 1)


def cordoned_for(client) -> str | None:
    return next(one["metadata"]["cordoned_for"] for one in client.workers() if one["worker_id"] == "sick")
