"""A real training, by torchrun, that fills the workers of a farm, gives one of them to a test, and takes it back."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.demo import NUM_TRAINING_SAMPLES, digits
from dtf_lightning.elastic.observe.ledger import audit
from dtf_lightning.elastic.run.keys import RunKeys
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.server.scheduling import trainings
from dtf_lightning.farm.tokens import read_token
from support.farm.server import CoordinatorInThread, WorkerInThread
from support.farm.warm_parts import WarmParts

pytestmark = pytest.mark.process
PATIENCE = 300.0
"""Seconds; only a failing test waits this long."""


@pytest.fixture
def farm(tmp_path, monkeypatch):
    """A coordinator and two workers of one core each; a part stays away for a moment only."""
    monkeypatch.setattr(trainings, "AWAY", 1.0)
    monkeypatch.setattr(trainings, "PRICE", 0.0)
    store = MemoryStore()
    coordinator = CoordinatorInThread(store, tmp_path)
    token = read_token(coordinator.token_file)
    workers = [WorkerInThread(coordinator.url, token, tmp_path / core, f"w{core}", core) for core in ("0", "1")]
    yield coordinator
    for worker in workers:
        worker.close()
    coordinator.stop()
    store.close()


@pytest.fixture
def parts(fork_server):
    with WarmParts(fork_server) as parts:
        yield parts


def wait_for_world(store, training, size, after=0):
    """Wait for a generation of this many members after the one with this number; returns its number."""
    numbers = []

    def is_there():
        held = store.get(RunKeys(training).generation)
        now = json.loads(held.value) if held is not None else {"number": 0, "members": []}
        numbers.append(now["number"])
        return now["number"] > after and len(now["members"]) == size

    poll_until(is_there, PATIENCE, f"a generation of {size} members after number {after}")
    return numbers[-1]


@pytest.mark.parametrize("times", [1, pytest.param(50, marks=pytest.mark.chaos)])
def test_a_test_borrows_a_device_and_no_sample_is_lost(farm, etcd, store, parts, tmp_path, times):
    """The training has both cores; each test gets one of them, and the training has it again afterwards.

    In the end two urgent ones get both: the training waits with its state in its folder, and goes on by itself.
    """
    folder, stop = tmp_path / "run", tmp_path / "stop"
    with farm.client() as client:
        training = client.train(
            str(Path(digits.__file__)),
            [f"--folder={folder}", "--name=digits", "--epochs=100000", "--batch-size=16", f"--stop-file={stop}"],
            endpoint=etcd.endpoint,
            workers=(1, 2),
            suspend_for=50,
            python=parts.python,
        )
        number = wait_for_world(store, training, 2)
        for _ in range(times):
            test = client.submit([sys.executable, "-c", "print('tested')"])
            assert client.wait(test, PATIENCE).status == "completed"
            number = wait_for_world(store, training, 2, after=number)
        urgent = client.map([[sys.executable, "-c", "print('urgent')"]] * 2, priority=50)
        assert [client.wait(test, PATIENCE).status for test in urgent] == ["completed", "completed"]
        stop.touch()  # nobody trains; who comes back ends with the epoch that was left in its middle
        info = client.wait(training, PATIENCE)
        ended = [client.task(f"{training}[{index}]") for index in range(2)]
        assert info.status == "completed", [b"".join(client.logs(part.task_id))[-3000:] for part in ended]
        assert {part.status for part in ended} <= {"completed", "skipped"}
        metrics = info.raw["results"]["metrics"]
        assert metrics["generation"] >= 2 + 2 * times
        assert 0.0 <= metrics["goodput"] < 1.0
    account = audit(sorted(folder.glob("dtf/*/ledger/*.jsonl")))
    assert len(account.resume_steps) >= 2 + 2 * times  # each borrowing is a leave and a return
    assert len(account.instances) == 1  # it was never begun anew
    assert (account.steps_lost, account.void_draws) == (0, 0)
    assert [
        number for number, epoch in account.epochs.items() if epoch.repeated() or epoch.missing(NUM_TRAINING_SAMPLES)
    ] == []
