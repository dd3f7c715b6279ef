"""A group that is no longer used is destroyed beside the thread that goes on."""

from __future__ import annotations

import os
import threading
import weakref
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from dtf_lightning.elastic.collectives import dropped_groups
from dtf_lightning.elastic.collectives.dropped_groups import DroppedGroups
from dtf_lightning.elastic.collectives.process_group import GenerationGroup, _open_sockets

LONG = 30.0
"""Seconds; only a failing test waits this long."""


class _Slow:
    """Its destructor does not come to an end before it may."""

    def __init__(self, begun: threading.Event, may_end: threading.Event) -> None:
        self.begun, self.may_end = begun, may_end

    def __del__(self) -> None:
        self.begun.set()
        self.may_end.wait(LONG)


@pytest.fixture
def slow():
    """Its destructor's two events, and the list with the only reference to it; it ends with the test."""
    begun, may_end = threading.Event(), threading.Event()
    yield begun, may_end, [_Slow(begun, may_end)]
    may_end.set()


@pytest.fixture
def group(store):
    made = GenerationGroup()

    def form(prefix):
        made.form(
            host="127.0.0.1", port=store.port, prefix=prefix, rank=0, world_size=1, backend="gloo",
            connect_timeout=20.0, timeout=timedelta(seconds=20), device=torch.device("cpu"),
        )  # fmt: skip
        return made

    yield form
    made.close()


def test_the_thread_that_drops_a_group_goes_on_while_it_ends(slow):
    begun, may_end, groups = slow
    dropped = DroppedGroups()
    dropped.destroy(groups)  # returns, though the destructor waits
    assert begun.wait(LONG)
    may_end.set()
    dropped.wait()
    assert not any(thread.name == "dtf-group-destroyer" for thread in threading.enumerate())


def test_a_group_that_does_not_end_holds_nobody_up(slow, monkeypatch, caplog):
    """Its collective is forgotten by gloo: whoever waits goes on without it."""
    begun, _, groups = slow
    monkeypatch.setattr(dropped_groups, "PATIENCE", 0.01)
    dropped = DroppedGroups()
    dropped.destroy(groups)
    assert begun.wait(LONG)
    dropped.wait()
    assert "left behind" in caplog.text


def test_the_end_of_the_interpreter_waits(slow):
    """The destructor must not come back into an interpreter that is ending."""
    begun, may_end, groups = slow
    dropped = DroppedGroups()
    dropped.destroy(groups)
    assert begun.wait(LONG)
    threading.Thread(target=may_end.set).start()
    dropped_groups._wait_for_all()
    assert not dropped._threads


def test_a_process_group_ends_in_another_thread(group, new_prefix):
    """And the same object forms the next group meanwhile, again and again."""
    ended_in: list[int] = []
    watches = []
    for _ in range(3):
        formed = group(new_prefix())
        watches.append(weakref.ref(dist.group.WORLD, lambda _: ended_in.append(threading.get_ident())))
        formed.destroy()
    formed.close()
    assert len(ended_in) == 3
    assert threading.get_ident() not in ended_in


def test_a_forked_child_holds_no_socket_of_a_group_that_is_not_destroyed_yet(group, new_prefix):
    """A DataLoader worker that is forked right after a rescale; the group is held here as by its destructor."""
    formed = group(new_prefix())
    held = dist.group.WORLD
    own = set(formed._sockets().values())
    assert own
    formed.destroy()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, str(len(own & set(_open_sockets().values()))).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as told:
        assert told.read() == "0"
    os.waitpid(child, 0)
    assert own <= set(_open_sockets().values()), "the group was still there"
    del held
