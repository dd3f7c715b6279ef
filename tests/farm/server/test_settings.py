"""What a coordinator's settings change."""

from __future__ import annotations

import asyncio
import socket

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.server.main import listen
from support.farm.server import CoordinatorInThread


@pytest.fixture
def start(memory, tmp_path):
    started = []

    def make(**settings):
        coordinator = CoordinatorInThread(
            memory, tmp_path, settings={k.replace("__", "."): v for k, v in settings.items()}
        )
        started.append(coordinator)
        return coordinator

    yield make
    for coordinator in started:
        coordinator.stop()


@pytest.fixture
def port():
    """One that nobody else is given meanwhile; whoever listens with SO_REUSEADDR may take it."""
    with socket.socket() as placeholder:
        placeholder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        placeholder.bind(("127.0.0.1", 0))
        yield placeholder.getsockname()[1]


def test_its_settings_take_effect(start, tmp_path, port):
    """A second port serves the same, the database lies where it was said, and above the limit no task is taken."""
    coordinator = start(
        server__workers_port=port,
        database__path=str(tmp_path / "mine.duckdb"),
        task_scheduler__max_queue_size=2,
        load_balancer__strategy="round_robin",
    )
    with Client(f"http://127.0.0.1:{port}", coordinator.token_file) as client:
        task = client.submit(["x"])
        client.submit(["x"])
        with pytest.raises(FarmRefused, match="2 tasks are waiting or running") as refused:
            client.submit(["x"])
        assert refused.value.status == 429
    with coordinator.client() as client:
        assert client.task(task).status == "pending"
    assert (tmp_path / "mine.duckdb").exists()


def test_a_strategy_that_nobody_has(memory, tmp_path):
    """It does not start, and says which there are."""
    with pytest.raises(SettingsError, match=r"no scheduling strategy is called 'fastst'; expected one of .*fastest"):
        CoordinatorInThread(memory, tmp_path, settings={"load_balancer.strategy": "fastst"})


def test_an_answer_does_not_wait_for_an_acknowledgement():
    """Nagle's algorithm is off on what a coordinator's listener accepts: each answer would take 40 ms longer."""

    async def accepted():
        no_delay = asyncio.get_running_loop().create_future()

        def connected(_, writer):
            no_delay.set_result(writer.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = listen("127.0.0.1", 0)
        async with await asyncio.start_server(connected, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            try:
                return await asyncio.wait_for(no_delay, 20)
            finally:
                writer.close()

    assert asyncio.run(accepted())
