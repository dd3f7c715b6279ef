"""A coordinator whose watch is behind: what another one has accepted is not unknown to it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from dtf_lightning.etcd.memory.store import MemoryStore, MemoryWatch
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.task_id import instance_id, new_task_id
from dtf_lightning.farm.server import tasks
from support.farm.server import DEADLINE, CoordinatorInThread

pytestmark = pytest.mark.process


class LateWatch(MemoryWatch):
    """Tells what has happened once `news` is set."""

    news: threading.Event

    def get(self, timeout: float | None = None):
        told = super().get(timeout)
        if told is not None and not self._cancelled:
            self.news.wait(DEADLINE)
        return told


class LateStore(MemoryStore):
    """Its watches are late while `news` is not set."""

    def __init__(self, backend) -> None:
        super().__init__(backend)
        self.news = threading.Event()
        self.news.set()

    def watch(self, prefix: str, *, start_revision: int) -> LateWatch:
        watch = LateWatch(self, prefix, start_revision)
        watch.news = self.news
        return watch


@pytest.fixture
def late(memory: MemoryStore) -> Iterator[LateStore]:
    store = LateStore(memory.backend)
    yield store
    store.news.set()
    store.close()


@pytest.fixture
def behind(coordinator: CoordinatorInThread, late: LateStore, tmp_path) -> Iterator[Client]:
    """A client of the second coordinator, which is behind from now on."""
    second = CoordinatorInThread(late, tmp_path, name="c1")
    with second.client() as client:
        client.tasks()
        late.news.clear()
        yield client
        late.news.set()
    second.stop()


def answers(call, *arguments) -> tuple[threading.Thread, list]:
    """Ask in a thread; what comes back lies in the list."""
    told: list = []
    thread = threading.Thread(target=lambda: told.append(call(*arguments)), daemon=True)
    thread.start()
    return thread, told


@pytest.mark.parametrize("question", ["task", "cancel"])
def test_what_another_has_accepted_is_waited_for(client, behind, late, question):
    task = client.submit(["true"])
    thread, told = answers(getattr(behind, question), task)
    thread.join(0.3)
    assert told == []
    late.news.set()
    thread.join(DEADLINE)
    status = {"task": lambda: told[0].status, "cancel": lambda: client.wait(task, DEADLINE).status}[question]()
    assert status == {"task": "pending", "cancel": "cancelled"}[question]


def test_an_instance_of_an_array_that_another_has_accepted(client, behind, late):
    array = client.submit(["true"], array=200)
    thread, told = answers(behind.task, instance_id(array, 150))
    late.news.set()
    thread.join(DEADLINE)
    assert told[0].status == "pending"


def test_news_that_come_while_it_is_looked_up(client, behind, late, monkeypatch):
    """Between two looks at what this coordinator holds: a storm found it."""
    task = client.submit(["true"])
    outcome = tasks.Tasks.outcome

    async def told_meanwhile(self, name):
        told = await outcome(self, name)
        late.news.set()
        await self._pool.wait_for(name, lambda: self._pool.has_shown(name), DEADLINE)
        return told

    monkeypatch.setattr(tasks.Tasks, "outcome", told_meanwhile)
    behind.cancel(task)
    assert client.wait(task, DEADLINE).status == "cancelled"


def test_news_that_do_not_come(client, behind, monkeypatch):
    """Not "unknown": the client asks again, and says at last that the farm does not answer."""
    task = client.submit(["true"])
    monkeypatch.setattr(tasks, "SHOWN", 0.1)
    monkeypatch.setattr(behind.connection, "patience", 0.0)
    with pytest.raises(FarmRefused, match=r"has not heard of the task .* yet: ask again") as caught:
        behind.cancel(task)
    assert caught.value.status == 503


@pytest.mark.parametrize("question", ["task", "cancel"])
def test_what_nobody_has_accepted_is_unknown_at_once(client, behind, question):
    with pytest.raises(FarmRefused, match="this farm knows no task"):
        getattr(behind, question)(new_task_id(1.7e9))
