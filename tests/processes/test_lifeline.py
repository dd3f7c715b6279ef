"""A thread's end is seen in another process, before its own process has ended, and only its end."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys

import pytest

from dtf_lightning.processes import lifeline
from dtf_lightning.processes.lifeline import Lifeline, LifelineWatch
from support.lifelines import DEADLINE, Holder

HOLDS = """
import os, signal, socket, sys
from dtf_lightning.processes.lifeline import Lifeline
held = Lifeline()
socket.send_fds(socket.socket(fileno=int(sys.argv[1])), [b"."], [held.descriptor])
if os.fork() == 0:
    held.close_file()
signal.pause()
"""
"""Holds a lifeline; so does nobody else, but a forked child that has its memory."""


@pytest.fixture
def holder():
    made = Holder()
    yield made
    made.end()


@pytest.fixture
def watch(holder):
    made = LifelineWatch(holder.descriptor)
    yield made
    made.close()


def shows_an_end(watch: LifelineWatch, seconds: float) -> bool:
    return bool(select.select([watch], [], [], seconds)[0])


def test_the_end_of_the_thread_that_holds_it(holder, watch):
    """Its process, which is this one, lives on: no socket is closed and no pidfd tells."""
    assert not shows_an_end(watch, 0)
    holder.end()
    assert shows_an_end(watch, DEADLINE)


def test_whoever_looks_late_sees_it_too(holder):
    descriptor = os.dup(holder.descriptor)
    holder.end()
    watch = LifelineWatch(descriptor)
    os.close(descriptor)
    assert shows_an_end(watch, DEADLINE)
    watch.close()


def test_letting_go_is_no_end(holder, watch):
    """As a worker does that closes its connection: what watches has nothing more to wait for."""
    holder.let_go()
    watch._thread.join(DEADLINE)
    assert not watch._thread.is_alive()
    assert not shows_an_end(watch, 0)


def test_watching_ends_while_it_is_held(holder):
    """Twice is no error; no thread and no file is left, which the test's police sees."""
    watch = LifelineWatch(holder.descriptor)
    watch.close()
    watch.close()
    assert not watch._thread.is_alive()


def test_a_killed_process():
    """With -9, while a child that it has forked lives on with its memory and its files."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = subprocess.Popen([sys.executable, "-c", HOLDS, str(theirs.fileno())], pass_fds=[theirs.fileno()],
                                   start_new_session=True)  # fmt: skip
        ours.settimeout(DEADLINE)
        _, (descriptor,), _, _ = socket.recv_fds(ours, 1, 1)
        watch = LifelineWatch(descriptor)
        os.close(descriptor)
        assert not shows_an_end(watch, 0)
        process.kill()
        assert shows_an_end(watch, DEADLINE)
        watch.close()
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(DEADLINE)


def test_another_file_is_none(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    with path.open("rb") as file, pytest.raises(OSError, match=r"\[Errno"):
        LifelineWatch(file.fileno())
    descriptor = os.memfd_create("short", os.MFD_ALLOW_SEALING)
    with pytest.raises(OSError, match="cannot become shorter"):
        LifelineWatch(descriptor)
    os.close(descriptor)


def test_where_there_are_none(monkeypatch):
    """Another processor, or a libc whose mutexes look otherwise: an error, and nothing is left."""
    monkeypatch.setattr(lifeline.threading, "get_native_id", lambda: 1)
    with pytest.raises(OSError, match="not in its first word") as caught:
        Lifeline()
    assert caught.value.errno == errno.ENOSYS
    monkeypatch.setattr(lifeline, "_FUTEX", None)
    with pytest.raises(OSError, match="not known"):
        Lifeline()
