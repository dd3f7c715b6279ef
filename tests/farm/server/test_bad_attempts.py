"""Faults of one attempt, of its worker or of the disk of whoever stores what it wrote, through a coordinator."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import queue
import time
import urllib.error

import pytest
from websockets.sync.client import connect

from dtf_lightning.clock import poll_until
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.messages import Hello, write_message
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.server.files import FarmFiles
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.workers import WorkerConnections
from dtf_lightning.farm.settings.coordinator import SKEW
from dtf_lightning.farm.tokens import read_token
from dtf_lightning.farm.worker.folders import WorkerFolders
from dtf_lightning.farm.worker.logs import KeptLogs
from dtf_lightning.farm.worker.service import log_sender
from dtf_lightning.farm.worker.service.log_sender import LogSender
from support.farm.server import DEADLINE, PlayedWorker

pytestmark = pytest.mark.process


@pytest.fixture
def another(coordinator):
    worker = PlayedWorker((coordinator.url,), read_token(coordinator.token_file), name="another", session="another")
    worker.wait_until_welcome()
    yield worker
    worker.close()


def test_an_answer_for_an_attempt_that_is_not_its_own(client, worker, another):
    """Whatever another worker says of it, and be it by the right number, the attempt's own worker decides."""
    task = client.submit(["x"], needs={"cpu": 2.0})
    poll_until(lambda: client.task(task).raw["worker_id"], DEADLINE, "the task to be given to one of them")
    owner, stranger = (worker, another) if client.task(task).raw["worker_id"] == worker.name else (another, worker)
    order = owner.next()
    stranger.end(order, OutcomeKind.FAILED, reason="says a stranger")
    assert not stranger.acknowledgements.get(timeout=DEADLINE).recorded
    assert not client.task(task).done
    owner.end(order)
    assert owner.acknowledgements.get(timeout=DEADLINE).recorded
    info = client.wait(task, DEADLINE)
    assert (info.status, info.raw["worker_id"]) == ("completed", owner.name)


@pytest.mark.parametrize(
    ("said", "refusal"),
    [
        (
            {"type": "hello", "v": 2, "worker": "w", "session": "s"},
            "a message 'hello' of version 2 came; this release speaks version 1: run the same release",
        ),
        ({"type": "greeting", "v": 1}, "no message of the farm"),
        (
            {"type": "started", "v": 1, "task": "t", "revision": 1, "at": 1.0},
            "the first message must be hello, got Started",
        ),
    ],
)
def test_a_worker_of_another_version(coordinator, client, said, refusal):
    """It is told why, and the farm goes on."""
    headers = {"Authorization": f"Bearer {read_token(coordinator.token_file)}"}
    with connect(
        coordinator.url.replace("http", "ws") + "/ws/worker", additional_headers=headers, proxy=None
    ) as socket:
        socket.send(json.dumps(said))
        answer = json.loads(socket.recv(timeout=DEADLINE))
    assert answer["type"] == "refuse"
    assert refusal in answer["reason"]
    assert client.workers() == []


@pytest.mark.parametrize("apart", [-3600.0, 3600.0])
def test_a_workers_clock_is_an_hour_off(client, worker, apart):
    """Its times are as it tells them; nothing is decided by them, and the next task runs."""
    for _ in range(2):
        task = client.submit(["x"], timeout=60.0, expires=60.0)
        order = worker.next()
        now = time.time() + apart
        worker.start(order)
        worker.end(order, started=now, ended=now + 1)
        info = client.wait(task, DEADLINE)
        assert info.status == "completed"
        assert info.raw["end_time"] > info.raw["start_time"]
    assert next(one.task_id for one in client.tasks(status="completed")) == task


@pytest.mark.parametrize(
    ("apart", "refused"),
    [
        (-SKEW, ""),
        (SKEW - 60, ""),
        (SKEW + 60, "set the clock of the machine that submits"),
        (-8 * 86400, "remembers ids"),
    ],
)
def test_a_clients_clock_is_off(client, worker, apart, refused):
    """By an hour it may be; beyond that the farm could not tell whether an id is new, and says what to do."""
    task = new_task_id(time.time() + apart)
    if refused:
        with pytest.raises(FarmRefused, match=refused):
            client.submit(["x"], task_id=task)
        return
    client.submit(["x"], task_id=task)
    worker.end(worker.next())
    assert client.wait(task, DEADLINE).status == "completed"


class TestAFullDiskOfTheCoordinator:
    @pytest.fixture
    def full(self, monkeypatch):
        """Whether there is no room for output."""
        append, state = FarmFiles.append_log, [True]

        def append_log(self, *arguments, **named):
            if state[0]:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return append(self, *arguments, **named)

        monkeypatch.setattr(FarmFiles, "append_log", append_log)
        return state

    @pytest.fixture
    def sent(self, worker, tmp_path):
        """Starts to send output that a worker has on its disk; returns what is complete."""
        folder = tmp_path / "worker"
        complete: queue.Queue[str] = queue.Queue()
        sender = LogSender(KeptLogs(folder), worker.connection, lambda task, _: complete.put(task))
        sender.start()

        def send(order, output):
            attempt = WorkerFolders(folder).attempt(order.task, order.revision)
            attempt.make()
            attempt.log.write_bytes(output)
            sender.ended(order.task, order.revision, len(output))
            return complete

        yield send
        sender.close()

    def test_output_waits_until_there_is_room(self, client, worker, full, sent, monkeypatch):
        """Nothing of it is lost, and its result waits for it."""
        monkeypatch.setattr(log_sender, "PAUSE", 0.01)
        task = client.submit(["x"])
        order = worker.next()
        with pytest.raises(FarmRefused, match=r"the coordinator's disk: .*No space left on device") as refused:
            worker.write(order, 0, b"direct")
        assert refused.value.status == 507
        complete = sent(order, b"output")
        full[0] = False
        assert complete.get(timeout=DEADLINE) == task
        worker.end(order, log_bytes=6)
        client.wait(task, DEADLINE)
        assert b"".join(client.logs(task)) == b"output"

    def test_a_result_is_not_held_up(self, client, worker, full, sent, monkeypatch):
        """Where there is no room for long it is recorded without; the output stays on the worker's disk."""
        monkeypatch.setattr(log_sender, "PATIENCE", 0.0)
        monkeypatch.setattr(log_sender, "PAUSE", 0.01)
        task = client.submit(["x"])
        order = worker.next()
        assert sent(order, b"output").get(timeout=DEADLINE) == task
        worker.end(order, log_bytes=6, tail="output")
        assert client.wait(task, DEADLINE).raw["results"]["tail"] == "output"


def test_a_worker_that_comes_when_the_coordinator_ends():
    """The record takes nothing more: its socket is closed, and it goes elsewhere. A WebSocket has no other answer."""
    said = []

    class Socket:
        async def receive_text(self) -> str:
            return write_message(
                Hello(worker="w", session="s", identity="i", version="0", devices={"cpu": 1.0}, host="h")
            )

        async def close(self, code: int = 1000, reason: str | None = None) -> None:
            said.append((code, reason))

    record = FarmRecord(MemoryStore(), "f")
    record.close()
    asyncio.run(WorkerConnections("c0", Pool(record.keys), record).serve(Socket()))
    assert said == [(1000, "etcd is away")]


def test_output_that_is_kept_no_more(client, coordinator, worker, tmp_path):
    """It is said, with the setting."""
    task = client.submit(["x"])
    order = worker.next()
    worker.write(order, 0, b"output")
    worker.end(order, log_bytes=6)
    client.wait(task, DEADLINE)
    for path in (tmp_path / "files" / "logs" / task).iterdir():
        path.unlink()
    with pytest.raises((FarmRefused, urllib.error.HTTPError), match="is kept no more") as refused:
        b"".join(client.logs(task))
    assert refused.value.status == 410
