"""The clients' WebSocket: what is told, in which order, over the death of a coordinator, and to whom it is not."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace

import pytest

from dtf_lightning.farm.client import Client
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.rules.updates import Update
from dtf_lightning.farm.security.identity import IN_SCOPE, OWNER
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.updates import changes, socket
from dtf_lightning.farm.server.updates.changes import Message, Updates
from dtf_lightning.farm.server.updates.socket import ClientSockets
from dtf_lightning.farm.tokens import read_token
from dtf_lightning.farm.updates import ClientSocket, follow
from support.farm.server import DEADLINE, CoordinatorInThread


@pytest.fixture
def line(coordinator):
    line = ClientSocket(coordinator.url, read_token(coordinator.token_file))
    yield line
    line.close()


def ask(line: ClientSocket, **message):
    line.send({"request_id": "r", **message})
    while (answer := line.receive(DEADLINE)).get("request_id") != "r":
        pass
    return answer


def until(updates, done) -> list[dict]:
    """What is told up to the first for which `done` holds."""
    told = []
    for update in updates:
        told.append(update)
        if done(update):
            return told
    raise AssertionError(told)


def statuses(told: list[dict]) -> list[str]:
    return [update["status"] for update in told if update["type"] == "task_update"]


@pytest.mark.process
class TestATasksLife:
    def test_is_told(self, client, worker):
        """With the revision of each change, so that one who comes back asks from there."""
        client.set_project("p")
        updates = client.updates(details=True)
        assert next(updates)["type"] == "subscribed"
        task = client.submit(["x"], name="n", project="p", retries=1)
        first = worker.next()
        worker.start(first)
        client.next_attempt(task, 0)
        told = until(updates, lambda update: update["status"] == "running")
        worker.end(first, OutcomeKind.FAILED)
        second = worker.next()
        worker.end(second)
        told += until(updates, lambda update: update["status"] == "completed")
        assert statuses(told) == ["pending", "assigned", "running", "pending", "assigned", "completed"]
        assert {update["task_id"] for update in told} == {task}
        assert told[1]["sequence"] == first.revision
        assert told[4]["sequence"] == second.revision
        sequences = [update["sequence"] for update in told]
        assert sequences == sorted(sequences)
        assert (told[-1]["worker_id"], told[-1]["name"], told[-1]["project"]) == ("w", "n", "p")
        assert told[-1]["task"] == client.task(task).raw
        again = until(client.updates(since=told[0]["sequence"] - 1), lambda update: update.get("status") == "completed")
        assert statuses(again) == statuses(told)
        updates.close()

    def test_filters(self, client, worker):
        plan = client.updates(plan="p", status=["completed", "failed"])
        one = client.updates(task_id="nobody")
        next(plan), next(one)
        client.submit(["x"], plan="q")
        task = client.submit(["x"], plan="p")
        for _ in range(2):
            worker.end(worker.next())
        told = until(plan, lambda update: True)
        assert [(update["task_id"], update["status"]) for update in told] == [(task, "completed")]
        plan.close(), one.close()

    def test_as_completed(self, client, worker):
        """Those that had ended before come, and others as they end."""
        tasks = client.map([["a"], ["b"], ["c"]])
        orders = {order.task: order for order in (worker.next(), worker.next())}
        early, late = orders
        worker.end(orders[late])
        client.wait(late, DEADLINE)
        ended = client.as_completed(tasks)
        assert next(ended).task_id == late
        third = worker.next()
        worker.end(third)
        assert next(ended).task_id == third.task
        worker.end(orders[early])
        assert [info.task_id for info in ended] == [early]


@pytest.mark.process
class TestSeveralCoordinators:
    @pytest.fixture
    def second(self, memory, coordinator, tmp_path):
        second = CoordinatorInThread(memory, tmp_path, name="c1")
        yield second
        second.stop()

    def test_sequences_mean_the_same(self, client, worker, second):
        """What both tell, but for `running`, which only the worker's own coordinator hears."""
        both = []
        for connection in (client.connection, second.client().connection):
            updates = follow(connection, "task_updates", {})
            next(updates)
            both.append(updates)
        task = client.submit(["x"])
        worker.end(worker.next())
        told = [until(updates, lambda update: update["status"] == "completed") for updates in both]
        here, there = ([(one["status"], one["sequence"]) for one in part] for part in told)
        assert here == there
        assert {one["task_id"] for one in told[1]} == {task}
        for updates in both:
            updates.close()

    def test_over_a_coordinators_end(self, memory, tmp_path):
        """Nothing is missing and nothing is told twice, though tasks were submitted while nobody listened."""
        first = CoordinatorInThread(memory, tmp_path, name="c1")
        last = CoordinatorInThread(memory, tmp_path, name="c2")
        try:
            with Client(f"{first.url},{last.url}", first.token_file) as client, last.client() as other:
                updates = client.updates()
                next(updates)
                tasks = [client.submit(["x"])]
                told = until(updates, lambda update: True)
                first.stop()
                tasks += [other.submit(["x"]) for _ in range(20)]
                told += until(updates, lambda update: update["task_id"] == tasks[-1])
                assert [update["task_id"] for update in told] == tasks
                updates.close()
        finally:
            last.stop()


@pytest.mark.process
class TestWhatIsSaid:
    def test_what_is_not_kept_any_more_is_a_gap(self, monkeypatch, memory, tmp_path):
        monkeypatch.setattr(changes, "KEPT", 2)
        coordinator = CoordinatorInThread(memory, tmp_path)
        try:
            with coordinator.client() as client:
                began = client.status()["revision"]
                for _ in range(3):
                    client.submit(["x"])
                line = ClientSocket(coordinator.url, read_token(coordinator.token_file))
                answer = ask(line, type="subscribe", channel="task_updates", since=began)
                assert (answer["success"], answer["gap"]) == (True, True)
                assert began < answer["kept_since"] <= answer["sequence"]
                answer = ask(line, type="subscribe", channel="task_updates", since=answer["kept_since"])
                assert not answer["gap"]
                assert len([line.receive(DEADLINE) for _ in range(2)]) == 2
                line.close()
                updates = client.updates(since=began)
                assert next(updates)["type"] == "gap"
                updates.close()
        finally:
            coordinator.stop()

    def test_later(self, line):
        told = ask(line, type="get_aggregated_results")
        assert (told["type"], told["success"], told["status"]) == ("aggregated_results", False, 501)

    @pytest.mark.parametrize(
        ("message", "told"),
        [
            ({"type": "subscrbe"}, "type: expected one of subscribe"),
            ({}, "type: expected"),
            ({"type": "subscribe", "channel": "x"}, "channel: expected one of task_updates"),
            ({"type": "subscribe"}, "channel: expected"),
            ({"type": "unsubscribe", "channel": []}, "channel: expected"),
            ({"type": "subscribe", "channel": "task_updates", "filter": {"stat": "x"}}, "'stat' is nothing that"),
            ({"type": "subscribe", "channel": "task_updates", "filter": []}, "filter: expected an object"),
            ({"type": "subscribe", "channel": "task_updates", "filter": {"plan": 7}}, "plan: expected a text"),
            ({"type": "subscribe", "channel": "task_updates", "since": -1}, "since: expected"),
            ({"type": "subscribe", "channel": "task_updates", "since": True}, "since: expected"),
            ({"type": "subscribe", "channel": "task_updates", "since": 2**70}, "since: expected"),
            ({"type": "subscribe", "channel": "task_updates", "details": 1}, "details: expected"),
        ],
    )
    def test_what_cannot_be_meant(self, line, message, told):
        answer = ask(line, **message)
        assert (answer["success"], answer["status"]) == (False, 422)
        assert told in answer["error"]
        assert ask(line, type="unsubscribe", channel="task_updates")["success"]

    def test_nonsense(self, line):
        for text in ("", "{", "[]", "7", "[" * 10_000, '{"request_id": {}}'):
            line._protocol.send_text(text.encode())
            answer = line.receive(DEADLINE)
            assert (answer["type"], answer["status"]) == ("error", 422)
        line._protocol.send_binary(b"\xff")
        assert line.receive(DEADLINE)["type"] == "error"

    def test_only_with_the_token(self, coordinator):
        with pytest.raises(FarmRefused, match="refused the connection: this is neither the farm's own token nor one"):
            ClientSocket(coordinator.url, "wrong")


class SlowSocket:
    """Takes `takes` messages, and then none until it is let go."""

    def __init__(self, takes: int, says: list[str]) -> None:
        self.scope = {IN_SCOPE: OWNER}
        self.sent: list[str] = []
        self.free = asyncio.Event()
        self.closed = asyncio.Event()
        self._takes, self._says = takes, says
        self._news = asyncio.Event()

    def let_go(self) -> None:
        self.free.set()

    async def until(self, condition) -> None:
        while not condition(self.sent):
            await self._news.wait()
            self._news.clear()

    async def accept(self) -> None: ...

    async def close(self, code: int = 1000, reason: str = "") -> None:
        self.closed.set()

    async def receive(self) -> dict:
        if self._says:
            return {"type": "websocket.receive", "text": self._says.pop(0)}
        await self.closed.wait()
        return {"type": "websocket.disconnect"}

    async def send_text(self, text: str) -> None:
        if len(self.sent) >= self._takes:
            await self.free.wait()
        self.sent.append(text)
        self._news.set()


class TestSlowOnes:
    def updates(self, monkeypatch) -> Updates:
        monkeypatch.setattr(changes, "KEPT", 10)
        pool = Pool(SimpleNamespace())
        return Updates(pool, time.time)

    def test_is_dropped_with_a_note_and_nobody_waits_for_it(self, monkeypatch):
        async def story() -> tuple[list[str], list[str]]:
            updates = self.updates(monkeypatch)
            clients = ClientSockets(updates, {})
            subscribe = '{"type": "subscribe", "channel": "cluster_status"}'
            slow, quick = SlowSocket(2, [subscribe]), SlowSocket(1000, [subscribe])
            jobs = [asyncio.create_task(clients.serve(one)) for one in (slow, quick)]
            async with asyncio.timeout(DEADLINE):
                await quick.until(len)
                for number in range(1, 41):
                    updates.hub.publish(changes.CLUSTER, Update(number, {}, Message({"type": "u", "n": number})))
                    updates.taken_in(number)
                    await quick.until(lambda sent, number=number: len(sent) == number + 1)
                slow.let_go()
                await slow.until(lambda sent: "dropped" in sent[-1])
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            return slow.sent, quick.sent

        slow, quick = asyncio.run(story())
        assert [text.count('"type":"u"') for text in quick] == [0] + [1] * 40
        assert '"type":"dropped","channel":"cluster_status","sequence":40,"kept_since":30' in slow[-1]
        assert len(slow) < 40

    def test_one_that_takes_nothing_is_closed(self, monkeypatch):
        monkeypatch.setattr(socket, "SEND_TIMEOUT", 0.01)

        async def story() -> bool:
            frozen = SlowSocket(0, ["{}"])
            async with asyncio.timeout(DEADLINE):
                await ClientSockets(self.updates(monkeypatch), {}).serve(frozen)
            return frozen.closed.is_set()

        assert asyncio.run(story())

    def test_a_heartbeat_says_no_more_than_what_was_told(self, monkeypatch):
        monkeypatch.setattr(socket, "HEARTBEAT", 0.001)

        async def story() -> list[str]:
            updates = self.updates(monkeypatch)
            quiet = SlowSocket(1000, [])
            job = asyncio.create_task(ClientSockets(updates, {}).serve(quiet))
            async with asyncio.timeout(DEADLINE):
                updates.taken_in(7)
                await quiet.until(lambda sent: sent and '"sequence":7' in sent[-1])
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)
            return quiet.sent

        assert set(asyncio.run(story())) <= {'{"type":"heartbeat","sequence":0}', '{"type":"heartbeat","sequence":7}'}


def test_a_reading_of_everything_is_a_gap(monkeypatch):
    """After a compaction the watch begins anew: what happened in between is not known."""
    updates = TestSlowOnes().updates(monkeypatch)
    subscription, _ = updates.hub.subscribe(changes.TASKS, {})
    with updates.reading() as restart:
        restart(9)
    assert updates.hub.take(subscription, 1).lost
    assert updates.hub.subscribe(changes.TASKS, {}, 8)[1] is False
    assert updates.hub.subscribe(changes.TASKS, {}, 9)[1] is True
