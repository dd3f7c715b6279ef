"""What a task can hold, through a real coordinator and a real worker whose commands are processes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.tokens import read_token
from support.farm.server import DEADLINE, CoordinatorInThread, WorkerInThread

pytestmark = pytest.mark.process


class Whole:
    """A coordinator, its store, and a worker."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = MemoryStore()
        self.secrets = folder / "secrets"
        self.secrets.mkdir(mode=0o700)
        (self.secrets / "HF_TOKEN").write_text("hf_verysecret\n")
        (self.secrets / "HF_TOKEN").chmod(0o600)
        self.coordinator = CoordinatorInThread(self.store, folder)
        token = read_token(self.coordinator.token_file)
        self.worker = WorkerInThread(self.coordinator.url, token, folder / "worker", "w", secrets=self.secrets)
        with (
            self.coordinator.client() as client
        ):  # threads and connections are there when a task that printed has ended
            client.wait(client.submit(["echo", "ready"]), DEADLINE)

    def close(self) -> None:
        self.worker.close()
        self.coordinator.stop()
        self.store.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory):
    whole = Whole(tmp_path_factory.mktemp("whole"))
    yield whole
    whole.close()


@pytest.fixture
def client(whole):
    with whole.coordinator.client() as client:
        yield client


def new_id() -> str:
    return new_task_id(time.time())


def output(client, task: str) -> bytes:
    return b"".join(client.logs(task))


class TestSecrets:
    def test_are_given_and_masked_and_nowhere_else(self, whole, client):
        """Not in etcd, not in what the API shows, in no file of coordinator or worker."""
        task = client.submit(["sh", "-c", "echo got $HF_TOKEN; test ${#HF_TOKEN} = 13"], secrets=["HF_TOKEN"])
        info = client.wait(task, DEADLINE)
        assert (info.status, output(client, task)) == ("completed", b"got ***\n")
        told = json.dumps([info.raw, client.workers(), list(client.results(task_id=task))])
        assert "verysecret" not in told
        assert "secret:HF_TOKEN" in told
        kept = [kv.value for kv in whole.store.range("/").kvs]
        assert kept
        assert not any(b"verysecret" in value for value in kept)
        files = [path for path in whole.folder.rglob("*") if path.is_file() and path.parent != whole.secrets]
        assert not [path for path in files if b"verysecret" in path.read_bytes()]

    def test_that_no_worker_has(self, client):
        (told,) = client.submit_all(
            [{"task_id": (task := new_id()), "command": ["true"], "secrets": ["HF_TOKEN", "NO_SUCH"]}]
        )
        assert told["warning"] == "none of the 1 workers can do it; the nearest lacks the secret 'NO_SUCH'"
        assert "no worker has the secret NO_SUCH" in client.task(task).reason
        client.cancel(task)
