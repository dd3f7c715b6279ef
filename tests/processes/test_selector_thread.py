"""A thread that calls back for files that can be read."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator

import pytest

from dtf_lightning.processes.selector_thread import SelectorThread

PATIENCE = 60.0
"""Seconds; only a failing test waits this long."""


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def heard() -> queue.SimpleQueue:
    return queue.SimpleQueue()


def test_calls_back_in_its_own_thread(pair, heard):
    """A registered socket gets data: the callback runs, in the thread of the given name."""
    ours, theirs = pair
    loop = SelectorThread("reader")
    loop.register(ours, lambda: heard.put((ours.recv(10), threading.current_thread().name)))
    loop.start()
    theirs.send(b"hello")
    assert heard.get(timeout=PATIENCE) == (b"hello", "reader")
    loop.close()


def test_wake_has_the_next_wait_decided_anew(heard):
    """`before_wait` is called once at the start, and again after every wake, although no file is ready."""
    loop = SelectorThread("waker", lambda: heard.put(None))
    loop.start()
    heard.get(timeout=PATIENCE)
    loop.wake()
    heard.get(timeout=PATIENCE)
    loop.close()


def test_a_limit_ends_the_wait(heard):
    """`before_wait` asks to be called again at once: it is, without anybody's help."""
    limits = [0.0, 0.0, None]
    loop = SelectorThread("limited", lambda: heard.put(None) or (limits.pop(0) if limits else None))
    loop.start()
    for _ in range(3):
        heard.get(timeout=PATIENCE)
    loop.close()


def test_a_file_that_was_unregistered_is_not_called_for(pair, heard):
    """Two sockets are ready at once and the first one's callback gives both up: the second one's never runs."""
    ours, theirs = pair
    with socket.socketpair()[0] as other:  # its other end is closed: ready at once

        def give_up() -> None:
            loop.unregister(ours)
            loop.unregister(other)
            heard.put("first")

        loop = SelectorThread("unregistering")
        loop.register(ours, give_up)
        loop.register(other, give_up)
        theirs.send(b"x")
        loop.start()
        assert heard.get(timeout=PATIENCE) == "first"
        loop.close()
    assert heard.empty()


def test_close_ends_the_thread(pair):
    """Also from a callback, twice, and before it was started; registered files stay open."""
    ours, theirs = pair
    closed = threading.Event()
    loop = SelectorThread("closing")

    def close() -> None:
        loop.close()
        closed.set()

    loop.register(ours, close)
    loop.start()
    theirs.send(b"x")
    assert closed.wait(PATIENCE)
    loop.close()
    assert ours.recv(1) == b"x"
    SelectorThread("never started").close()
    assert not [thread for thread in threading.enumerate() if thread.name == "never started"]
