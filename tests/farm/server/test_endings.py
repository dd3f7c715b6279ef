"""What a cancelled attempt holds is taken until its workers have said that nothing of it is left, or are lost."""

from __future__ import annotations

import queue

import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.tokens import read_token
from support.farm.server import DEADLINE, PlayedWorker, WorkerInThread, wait_until_running

pytestmark = pytest.mark.process
ENDINGS = f"/dtf/farm/f/{Kind.ENDING.value}/"


@pytest.fixture
def gpus(coordinator):
    """Two workers with one gpu each."""
    made = [
        PlayedWorker((coordinator.url,), read_token(coordinator.token_file), name, name, cpu=2.0, gpu=1.0)
        for name in ("w0", "w1")
    ]
    for worker in made:
        worker.wait_until_welcome()
    yield made
    for worker in made:
        worker.close()


def runs_nothing_new(client, worker) -> None:
    """After an order of its own that needs no gpu, which the same leader gives after all that it has decided."""
    mark = client.submit(["mark"], needs={"cpu": 1})
    order = worker.next()
    assert order.task == mark
    worker.end(order)
    client.wait(mark, DEADLINE)
    with pytest.raises(queue.Empty):
        worker.orders.get_nowait()


class TestOneWorker:
    @pytest.fixture
    def worker(self, coordinator):
        worker = PlayedWorker((coordinator.url,), read_token(coordinator.token_file), "w", cpu=2.0, gpu=1.0)
        worker.wait_until_welcome()
        yield worker
        worker.close()

    def cancelled(self, client, worker):
        """A task that is cancelled and goes on, and one that waits for its gpu."""
        worker.lingers = True
        first = client.submit(["first"], needs={"gpu": 1})
        order = worker.next()
        worker.start(order)
        wait_until_running(client, first)
        second = client.submit(["second"], needs={"gpu": 1})
        assert client.cancel(first) == "cancelled"
        return worker.cancelled.get(timeout=DEADLINE), second

    def test_the_next_task_starts_when_the_first_ones_processes_are_gone(self, client, worker, memory):
        told, second = self.cancelled(client, worker)
        assert client.task(told.task).status == "cancelled"
        runs_nothing_new(client, worker)
        assert client.task(second).status == "pending"
        worker.gone(told)
        assert worker.next().task == second
        poll_until(lambda: not memory.range(ENDINGS).kvs, DEADLINE, "the note to go")

    def test_a_worker_that_connects_again_is_asked_again(self, client, worker):
        told, second = self.cancelled(client, worker)
        worker.hold_off()
        worker.come_back()
        worker.wait_until_welcome()
        assert worker.cancelled.get(timeout=DEADLINE) == told
        runs_nothing_new(client, worker)
        worker.gone(told)
        assert worker.next().task == second

    def test_another_leader_knows_it_from_the_record(self, client, worker, memory, coordinator):
        told, second = self.cancelled(client, worker)
        memory.delete("/dtf/farm/f/leader")
        poll_until(lambda: memory.get("/dtf/farm/f/leader") is not None, DEADLINE, "another leadership")
        runs_nothing_new(client, worker)
        worker.gone(told)
        assert worker.next().task == second

    def test_a_worker_that_is_lost_holds_nothing(self, client, worker, memory, coordinator):
        _, second = self.cancelled(client, worker)
        other = PlayedWorker((coordinator.url,), read_token(coordinator.token_file), "other", "other", cpu=1.0, gpu=1.0)
        try:
            other.wait_until_welcome()
            assert other.next().task == second
            memory.delete("/dtf/farm/f/workers/w")
            poll_until(lambda: not memory.range(ENDINGS).kvs, DEADLINE, "the note to go")
        finally:
            other.close()


def test_a_command_that_ignores_the_signal(client, coordinator, tmp_path):
    """On a real worker with one core: the next command runs when the first has ended, though it was cancelled long before."""
    token = read_token(coordinator.token_file)
    worker = WorkerInThread(coordinator.url, token, tmp_path / "w", "w")
    try:
        script = (
            f"cd {tmp_path}; trap 'touch told' TERM; touch up; until [ -e release ]; do sleep 0.05; done; touch over"
        )
        first = client.submit(["sh", "-c", script])
        poll_until((tmp_path / "up").exists, DEADLINE, "the first command to run")
        second = client.submit(["test", "-e", str(tmp_path / "over")])
        client.cancel(first)
        poll_until((tmp_path / "told").exists, DEADLINE, "the first command to be told")
        (tmp_path / "release").touch()
        info = client.wait(second, DEADLINE)
        assert (info.status, info.raw["metadata"]["attempt"]) == ("completed", 1)
    finally:
        worker.close()


class TestAGang:
    def test_each_worker_is_free_when_it_says_so(self, client, gpus):
        """Also one that has not heard of its part yet."""
        for worker in gpus:
            worker.lingers = True
        gang = client.submit(["g"], gang=2, needs={"gpu": 1})
        for worker in gpus:
            worker.start(worker.next())
        client.cancel(gang)
        told = [worker.cancelled.get(timeout=DEADLINE) for worker in gpus]
        tasks = [client.submit(["s"], needs={"gpu": 1}) for _ in gpus]
        gpus[1].gone(told[1])
        assert gpus[1].next().task in tasks
        with pytest.raises(queue.Empty):
            gpus[0].orders.get_nowait()
        gpus[0].gone(told[0])
        assert gpus[0].next().task in tasks
