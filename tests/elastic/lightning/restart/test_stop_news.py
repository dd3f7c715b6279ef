"""Workers of restart mode, each with its listening thread, on one store: what they hear of where others stop."""

from __future__ import annotations

import queue
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.collectives.watched_store import WatchedStore
from dtf_lightning.elastic.lightning.restart.stop_news import StopNews

DEADLINE = 60.0
SHORT = 0.2
"""Seconds of patience, instead of 5."""


def connect(port: int) -> dist.Store:
    """What a worker's main thread uses."""
    return dist.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, multi_tenant=True)


class Worker:
    """A rank as its main thread uses the news."""

    def __init__(self, port: int, prefix: str, rank: int, world_size: int, patience: float = SHORT) -> None:
        self.heard: queue.Queue[str] = queue.Queue()
        names = [f"n/{each}" for each in range(world_size)]
        self.news = StopNews(
            connect(port), lambda: WatchedStore("127.0.0.1", port, timedelta(seconds=DEADLINE)), prefix=prefix, rank=rank, names=names, generation=1, on_apart=self.heard.put, patience=patience
        )  # fmt: skip

    def hang_up(self) -> None:
        """torch ends a connection when nothing refers to it; pytest still does to the worker."""
        del self.news

    def passes(self, count: int) -> None:
        for _ in range(count):
            self.news.passes()


@pytest.fixture
def start(store_port: int) -> Iterator[Callable[..., list[Worker]]]:
    workers: list[Worker] = []

    def make(world_size: int, patience: float = SHORT) -> list[Worker]:
        prefix = uuid.uuid4().hex
        workers.extend(Worker(store_port, prefix, rank, world_size, patience) for rank in range(world_size))
        return workers

    yield make
    for worker in workers:
        worker.news.close()
        assert not worker.news._listener.is_alive()
        worker.hang_up()


def until(condition: Callable[[], Any]) -> None:
    """The news travel in a second or two."""
    poll_until(condition, DEADLINE, "the news")


@pytest.mark.parametrize("stopper", [0, 1, 2])
@pytest.mark.parametrize("late", [True, False])
def test_all_hear_it(start: Any, stopper: int, late: bool) -> None:
    """One stops at its third place, two go on: before they have heard of it (they wait in a collective), or after."""
    workers = start(3)
    others = [worker for rank, worker in enumerate(workers) if rank != stopper]
    for worker in workers:
        worker.passes(3)
    if not late:
        for worker in others:
            worker.passes(1)
    workers[stopper].news.stops(step=2, why="it had enough")
    if late:
        until(lambda: all(worker.news.first_stop == 3 for worker in others))
        for worker in others:
            worker.passes(1)
    for worker in workers:
        text = worker.heard.get(timeout=DEADLINE)
        assert f"rank {stopper} (n/{stopper}) stopped (after step 2: it had enough)" in text
        assert worker.news.apart == text


def test_an_end_together(start: Any) -> None:
    """All come to the end, one of them late: nobody hears of anything."""
    workers = start(2)
    for worker in workers:
        worker.passes(3)
    workers[1].news.stops(step=3, why="the end")
    until(lambda: all(worker.news.first_stop == 3 for worker in workers))
    workers[0].news.stops(step=3, why="the end")
    with pytest.raises(queue.Empty):
        workers[0].heard.get(timeout=3 * SHORT)
    assert not workers[0].news.suspected


def test_one_that_goes_on_after_all(start: Any) -> None:
    """It said that it stops, another was ahead by then, and it follows within the patience."""
    workers = start(2, patience=DEADLINE)
    workers[0].passes(1)
    workers[0].news.stops(step=1, why="for now")
    until(lambda: workers[1].news.first_stop == 1)
    workers[1].passes(2)
    until(lambda: workers[0].news.suspected)
    workers[0].passes(1)
    until(lambda: workers[1].news.first_stop is None)
    assert [worker.news.apart for worker in workers] == [None, None]
    for worker in workers:
        worker.news._patience = SHORT
    workers[0].news.stops(step=2, why="for good")
    until(lambda: workers[1].news.first_stop == 2)
    workers[1].passes(1)
    assert "for good" in workers[1].heard.get(timeout=DEADLINE)


@pytest.mark.parametrize(("stops", "ahead", "expected"), [(False, False, 0), (True, False, 1), (True, True, 2)])
def test_how_long_a_failed_collective_waits_for_the_reason(start: Any, stops: bool, ahead: bool, expected: int) -> None:
    """Not at all while nobody has stopped; for the verdict only where somebody is ahead."""
    workers = start(2)
    waits: list[float] = []
    if stops:
        workers[0].news.stops(step=0, why="enough")
    if ahead:
        workers[1].passes(1)
        until(lambda: workers[0].news.suspected)
    workers[0].news.wait(waits.append)
    assert len(waits) == expected


def test_without_a_store(capfd: pytest.CaptureFixture[str]) -> None:
    """The store went with its host: training does not fail for it, the thread ends, and torch prints no stack of C++."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    workers = [Worker(server.port, "p", rank, 2) for rank in range(2)]
    workers[0].news.stops(step=1, why="enough")
    until(lambda: workers[1].news.first_stop == 0)
    del server
    for worker in workers:
        worker.news._listener.join(DEADLINE)
    assert "TCPStore" not in capfd.readouterr().err
    for worker in workers:
        worker.passes(3)
        worker.news.stops(step=1, why="enough")
        worker.news.close()
        worker.news.close()
        worker.hang_up()
