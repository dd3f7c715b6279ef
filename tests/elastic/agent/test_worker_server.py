"""What an agent sees of a worker's end: first its lifeline, then its socket or its process."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys

import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.agent.live import worker_server
from dtf_lightning.elastic.agent.live.inbox import WorkerEnding, WorkerGone, WorkerSaid
from dtf_lightning.elastic.agent.live.worker_server import WorkerServer
from dtf_lightning.elastic.link import worker_link
from dtf_lightning.elastic.link.messages import Dying, Heartbeat, Hello
from dtf_lightning.elastic.link.worker_link import WorkerLink
from support.elastic.scripted_agent import welcome

DEADLINE = 60.0
"""Seconds; only a failing test waits this long."""

WORKER = """
import os, signal, sys
from dtf_lightning.elastic.link.worker_link import WorkerLink
link = WorkerLink(sys.argv[1], 0)
kept = os.dup(link._socket.fileno())  # a child that this package does not know of keeps the connection open
if os.fork() > 0:
    link.dying("last words")
signal.pause()
"""


class Heard(queue.Queue):
    """What the server reports, but for signs of life."""

    def expect(self, kind):
        event = self.get(timeout=DEADLINE)
        assert isinstance(event, kind), f"expected {kind.__name__}, got {event!r}"
        return event


@pytest.fixture
def served(tmp_path):
    """A server that welcomes whoever comes."""
    heard = Heard()

    def push(event):
        said = event.message if isinstance(event, WorkerSaid) else None
        if isinstance(said, Hello):
            server.send(event.connection, welcome())
        if not isinstance(said, Heartbeat):
            heard.put(event)

    path = str(tmp_path / "agent")
    server = WorkerServer(path, push)
    server.start()
    yield path, heard, server
    server.close()


def test_a_killed_worker_shows_on_its_lifeline(served, monkeypatch):
    """Nothing else tells: its connection is open in a child, and the kernel has no pidfds. What it said comes first."""
    monkeypatch.setattr(worker_server, "open_pidfd", lambda _: None)
    path, heard, server = served
    worker = subprocess.Popen([sys.executable, "-c", WORKER, path], start_new_session=True)
    try:
        assert isinstance(heard.expect(WorkerSaid).message, Hello)
        assert isinstance(heard.expect(WorkerSaid).message, Dying)
        poll_until(lambda: [each.lifeline for each in server._connections.values() if each.lifeline], DEADLINE, "it")
        worker.kill()
        heard.expect(WorkerEnding)
        with pytest.raises(queue.Empty):
            heard.get_nowait()
    finally:
        with contextlib.suppress(OSError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait(DEADLINE)
    heard.expect(WorkerGone)


def test_a_worker_that_closes_its_connection_is_not_ending(served):
    """It lets its lifeline go, and the thread that watched it has ended."""
    path, heard, _ = served
    link = WorkerLink(path, 0)
    heard.expect(WorkerSaid)
    link.close()
    assert "closed the connection" in heard.expect(WorkerGone).cause


def test_a_worker_without_a_lifeline(served, monkeypatch):
    """Another system, or a sandbox without shared memory: the end of its connection tells, as ever."""

    def none():
        raise OSError("there are no lifelines here")

    monkeypatch.setattr(worker_link, "Lifeline", none)
    path, heard, _ = served
    link = WorkerLink(path, 0)
    heard.expect(WorkerSaid)
    link.close()
    heard.expect(WorkerGone)
