"""A coordinator that scales pools: what it asks of a provider, whom it drains, and what the next leader makes of that."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import replace

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.clock import SystemClock, poll_until
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.scaling.values import PoolRecord, WorkerOrder
from dtf_lightning.farm.scaling.provider import Provider, ProviderFailed, WorkersWanted
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.scaling import books, making
from dtf_lightning.farm.server.scaling import scaler as scaler_module
from dtf_lightning.farm.server.scaling.scaler import FarmPool, Here, Scaler
from dtf_lightning.farm.settings.pools import PoolSettings
from support.farm.server import DEADLINE, CoordinatorInThread, PlayedWorker

pytestmark = pytest.mark.process

POOL = "cpu: {{devices: [cpu=1], maximum: {maximum}, serve_within: 30s, patience: 0, idle: {idle}, cool_down: 0, cost: 1, timeout: 30}}"


class Asked(Provider):
    """A provider that notes what it is asked for."""

    def __init__(self) -> None:
        self.started: list[WorkersWanted] = []
        self.ended: list[WorkersWanted] = []
        self.problem = ""
        self.heard = threading.Event()

    def start(self, wanted: WorkersWanted) -> None:
        self.started.append(wanted)
        self.heard.set()
        if self.problem:
            raise ProviderFailed(self.problem)

    def end(self, wanted: WorkersWanted) -> None:
        self.ended.append(wanted)


class Member(PlayedWorker):
    """A worker of the pool."""

    def hello(self):
        return replace(super().hello(), labels=("pool=cpu",))


class World:
    """A coordinator with a pool, and its workers."""

    def __init__(self, memory, folder, stack, *, maximum=3, idle="0s", dry_run=False, **options) -> None:
        (folder / "pools.yaml").write_text(POOL.format(maximum=maximum, idle=idle))
        self.stack = stack
        self.coordinator = CoordinatorInThread(
            memory,
            folder,
            settings={
                "scaling.pools": str(folder / "pools.yaml"),
                "scaling.dry_run": dry_run,
                "scaling.interval": 0.1,
                "security.token_file": str(folder / "token"),
            },
            **options,
        )
        stack.callback(self.coordinator.stop)
        self.token = self.coordinator.token_file.read_text().strip()
        self.client = stack.enter_context(self.coordinator.client())

    def member(self, name: str) -> Member:
        worker = Member((self.coordinator.url,), self.token, name=name, cpu=1.0)
        self.stack.callback(worker.close)
        worker.wait_until_welcome()
        return worker

    def pool(self) -> dict:
        pools = self.client.scaling()["pools"]
        return pools[0] if pools else {"workers": {}, "steps": [], "decision": {}, "problem": "", "orders": []}

    def until(self, condition, what: str) -> None:
        poll_until(lambda: condition(self.pool()), DEADLINE, lambda: f"{what}: {self.pool()}")


@pytest.fixture
def provider(monkeypatch) -> Asked:
    provider = Asked()
    monkeypatch.setattr(making, "provider_of", lambda *_: provider)
    return provider


def until(condition, what: str) -> None:
    poll_until(condition, DEADLINE, what)


def test_it_grows_for_what_waits_and_lets_go_what_is_idle(memory, tmp_path, provider, capsys):
    """Three tasks wait: three workers are asked for, once. The one that stays busy is not drained."""
    with contextlib.ExitStack() as stack:
        world = World(memory, tmp_path, stack)
        tasks = [world.client.submit(["x"], name="alike") for _ in range(3)]
        until(lambda: sum(len(one.names) for one in provider.started) == 3, "three to be asked for")
        world.until(
            lambda pool: pool["workers"]["starting"] == 3 and all(one["given"] for one in pool["orders"]),
            "on their way",
        )
        names = [name for one in provider.started for name in one.names]
        wanted = provider.started[-1]
        assert (wanted.total, wanted.labels, wanted.coordinator) == (3, ("pool=cpu",), world.coordinator.url)
        assert wanted.token_file == str(tmp_path / "token")
        workers = [world.member(name) for name in names]
        orders = [worker.next() for worker in workers]
        assert sorted(order.task for order in orders) == sorted(tasks)
        workers[0].end(orders[0])
        workers[1].end(orders[1])
        for worker in workers[:2]:
            assert worker.draining.wait(DEADLINE)
        world.until(lambda pool: pool["workers"] == {"busy": 1, "idle": 0, "starting": 0, "leaving": 2}, "two to leave")
        assert not workers[2].draining.is_set()
        assert len(names) == sum(len(one.names) for one in provider.started)
        farm = ["--farm", world.coordinator.url, "--token-file", str(world.coordinator.token_file)]
        assert main(["farm", "scaling", *farm]) == 0
        said = capsys.readouterr().out
        assert f"drained {names[0]}" in said or f"drained {names[1]}" in said
        assert "idle for 0 s or more" in said
        workers[2].end(orders[2])
        assert workers[2].draining.wait(DEADLINE)


def test_a_dry_run_only_says_it(memory, tmp_path, provider, capsys):
    with contextlib.ExitStack() as stack:
        world = World(memory, tmp_path, stack, dry_run=True)
        task = world.client.submit(["x"], needs={"tpu": 1})
        world.client.submit(["x"])
        world.until(lambda pool: pool["decision"].get("start") == 1, "it to be said")
        farm = ["--farm", world.coordinator.url, "--token-file", str(world.coordinator.token_file)]
        assert main(["farm", "scaling", *farm]) == 0
        said = capsys.readouterr().out
        assert "cpu: would ask for 1: 1 task has waited for 0 s" in said
        assert f"no pool could do 1 tasks, such as {task}: the nearest pool, cpu, lacks 1 x tpu (it has 0)" in said
        assert "`scaling.dry_run` of coordinator.yaml is true" in said
        assert (provider.started, world.pool()["steps"]) == ([], [])


def test_a_provider_that_fails_is_asked_again_later(memory, tmp_path, provider, monkeypatch):
    monkeypatch.setattr(books, "BACKOFF", 0.05)
    provider.problem = "no quota left"
    with contextlib.ExitStack() as stack:
        world = World(memory, tmp_path, stack)
        world.client.submit(["x"])
        world.until(lambda pool: pool["problem"] == "no quota left", "the problem to be told")
        until(lambda: len(provider.started) >= 3, "it to be asked again")
        provider.problem = ""
        asked = len(provider.started)
        until(lambda: len(provider.started) > asked, "it to be asked once more")
        world.until(lambda pool: [one["given"] for one in pool["orders"]] == [True], "one to be on its way")
        world.member(provider.started[-1].names[0])
        world.until(lambda pool: (pool["problem"], pool["orders"]) == ("", []), "the problem to be over")


def test_who_comes_beyond_the_maximum_is_drained(memory, tmp_path, provider):
    """The provider gives three where one was asked for: what runs goes on, the idle ones go."""
    with contextlib.ExitStack() as stack:
        world = World(memory, tmp_path, stack, maximum=1, idle="1h")
        world.client.submit(["x"])
        until(lambda: provider.started, "one to be asked for")
        first = world.member(provider.started[0].names[0])
        order = first.next()
        others = [world.member(name) for name in ("extra-1", "extra-2")]
        for worker in others:
            assert worker.draining.wait(DEADLINE)
        world.until(lambda pool: pool["workers"] == {"busy": 1, "idle": 0, "starting": 0, "leaving": 2}, "two to leave")
        assert "there are 3, and may be 1" in world.pool()["steps"][0]["reason"] or "may be 1" in str(
            world.pool()["steps"]
        )
        assert not first.draining.is_set()
        first.end(order)


def test_the_next_leader_goes_on_by_the_same_names(memory, tmp_path, provider):
    """The last leader has written what it asks for and died: the next one asks for that, and for no more."""
    orders = (
        WorkerOrder(name="cpu-1", at=SystemClock().wall()),
        WorkerOrder(name="cpu-2", at=SystemClock().wall(), given=True),
    )
    memory.put(FarmKeys("f").key(Kind.SCALING, "cpu"), encode(PoolRecord(orders=orders)))
    with contextlib.ExitStack() as stack:
        world = World(memory, tmp_path, stack)
        for _ in range(2):
            world.client.submit(["x"])
        world.until(lambda pool: [one["given"] for one in pool["orders"]] == [True, True], "both to be on their way")
        world.until(lambda pool: pool["waiting"] == 2, "it to have looked again")
        assert [one.names for one in provider.started] == [("cpu-1",)]


def test_who_was_deposed_asks_for_nothing(memory, tmp_path, provider, monkeypatch):
    """A leader that does not know that another one leads: its fence is refused before its provider hears of it."""
    with contextlib.ExitStack() as stack:
        world = World(memory, tmp_path, stack, maximum=1, idle="1h")
        world.client.submit(["x"])
        until(lambda: provider.started, "the leader to ask for one")
        world.member(provider.started[0].names[0]).next()
        late = Asked()
        monkeypatch.setattr(scaler_module, "SHOWN", 0.0)  # its watch shows nothing
        epoch = memory.get(FarmKeys("f").leader).create_revision

        async def look(epoch: int) -> None:
            with FarmRecord(memory, "f") as record:
                pool = Pool(record.keys)
                found = memory.range(record.keys.prefix)
                pool.load(found.kvs, found.revision)
                settings = PoolSettings(devices=("cpu=1",), minimum=2, maximum=2)
                scaler = Scaler(
                    record, pool, SystemClock(), [FarmPool(name="other", settings=settings, provider=late)],
                    Here(coordinator="", token_file=""), epoch=lambda: epoch, dry_run=False,
                )  # fmt: skip
                await scaler.look()
                if scaler.calls:
                    await asyncio.to_thread(late.heard.wait, DEADLINE)
                for call in scaler.calls:
                    call.cancel()

        world.coordinator.loop.start(look(epoch - 1)).result(DEADLINE)
        assert late.started == []
        world.coordinator.loop.start(look(epoch)).result(DEADLINE)
        assert len(late.started) == 1  # with the leader's own fence it is asked


def test_who_is_ended_by_the_provider_is_cordoned_first(memory, tmp_path, provider):
    """As a StatefulSet's pods: the last ones go, when nothing runs there."""
    provider.ends = True
    provider.names = False
    with contextlib.ExitStack() as stack:
        world = World(memory, tmp_path, stack, maximum=2)
        for _ in range(2):
            world.client.submit(["x"])
        until(lambda: sum(len(one.names) for one in provider.started) == 2, "two to be asked for")
        workers = [world.member(f"pod-{number}") for number in range(2)]
        orders = [worker.next() for worker in workers]
        world.until(lambda pool: pool["workers"]["starting"] == 0, "both to have come, by whatever names")
        assert provider.ended == []
        workers[1].end(orders[1])
        until(lambda: provider.ended, "the last one to be ended")
        assert (provider.ended[0].names, provider.ended[0].total) == (("pod-1",), 1)
        assert not workers[1].draining.is_set()
        assert world.pool()["workers"] == {"busy": 1, "idle": 0, "starting": 0, "leaving": 1}
        workers[0].end(orders[0])
        until(lambda: provider.ended[-1].total == 0, "the other one to be ended")
