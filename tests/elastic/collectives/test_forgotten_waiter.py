"""A thread that waits in torch is forgotten when it sleeps in one call at every look: a slow machine makes none so."""

from __future__ import annotations

import threading

import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.collectives import forgotten_waiter
from dtf_lightning.elastic.collectives.forgotten_waiter import is_forgotten

IN_TORCH = min(forgotten_waiter._WAITS)


class Left(threading.Event):
    """In the place of the event that the watch waits for between two looks: no time passes, and `look` tells which is next."""

    def __init__(self, look=lambda number: None):
        super().__init__()
        self.num_looks, self._look = 0, look

    def wait(self, timeout=None):
        self.num_looks += 1
        self._look(self.num_looks)
        return False


class Waiter:
    """A thread that waits, until `go_on`, as in a function of this file."""

    def __init__(self, file):
        self._lock = threading.Lock()
        self._lock.acquire()
        names = {}
        exec(compile("def wait(lock):\n    lock.acquire()\n", file, "exec"), names)
        self.thread = threading.Thread(target=names["wait"], args=(self._lock,))
        self.thread.start()
        poll_until(lambda: self._where() == file, 60, "the thread to wait")

    def _where(self):
        sight = forgotten_waiter._look_at(self.thread.ident)
        return sight.call[2] if sight is not None else None

    def go_on(self):
        if self._lock.locked():
            self._lock.release()
        self.thread.join()


@pytest.fixture
def wait_in():
    made = []

    def make(file=IN_TORCH):
        made.append(Waiter(file))
        return made[-1]

    yield make
    for waiter in made:
        waiter.go_on()


def test_it_sleeps_in_one_call_at_every_look(wait_in):
    """The looks are counted: when the watch itself gets no processor for seconds, it has seen nothing by that."""
    left = Left()
    assert is_forgotten(wait_in().thread.ident, 2.0, left)
    assert left.num_looks == 10


def test_it_comes_out_before_the_last_look(wait_in):
    waiter = wait_in()
    assert not is_forgotten(waiter.thread.ident, 2.0, Left(lambda number: number == 10 and waiter.go_on()))


def test_it_waits_for_a_processor(wait_in, monkeypatch):
    """Woken up, it has no turn on a busy machine: it uses no time and stays where it is, but does not sleep."""
    waiter = wait_in()

    def is_woken(number):
        if number == 10:
            monkeypatch.setattr(forgotten_waiter, "thread_state", lambda *_: "R")

    assert not is_forgotten(waiter.thread.ident, 2.0, Left(is_woken))


def test_it_waits_for_something_of_the_users(wait_in):
    left = Left()
    assert not is_forgotten(wait_in("train.py").thread.ident, 2.0, left)
    assert left.num_looks == 0
