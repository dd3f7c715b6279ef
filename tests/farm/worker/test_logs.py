"""Logs that grow are told in pieces, by a thread."""

from __future__ import annotations

import threading

import pytest

from dtf_lightning.farm.worker.folders import WorkerFolders
from dtf_lightning.farm.worker.logs import LARGEST, SMALLEST, LogTeller
from support.farm.worker import PATIENCE, Listener


@pytest.fixture
def heard():
    return Listener()


@pytest.fixture
def teller(heard):
    teller = LogTeller(heard)
    yield teller
    teller.close()


@pytest.fixture
def folder(tmp_path):
    folder = WorkerFolders(tmp_path).attempt("t", 1)
    folder.make()
    return folder


def sizes(heard):
    return [len(piece.data) for piece in list(heard.told)]


def test_pieces(teller, heard, folder):
    """At most the largest; what is less than the smallest comes a little later, or with the end."""
    folder.log.write_bytes(bytes(range(256)) * 2500)
    teller.follow(folder)
    teller.grown(folder.name, 2 * LARGEST + 10)
    assert heard.wait(lambda: sizes(heard) == [LARGEST, LARGEST, 10])
    teller.grown(folder.name, 2 * LARGEST + 10 + SMALLEST)
    assert heard.wait(lambda: sizes(heard)[3:] == [SMALLEST])
    assert teller.finish(folder.name, 640_000, PATIENCE)
    assert heard.output(1) == folder.log.read_bytes()


def test_two_logs_take_turns(teller, heard, folder, tmp_path):
    """One that is long does not keep another waiting."""
    other = WorkerFolders(tmp_path).attempt("t", 2)
    other.make()
    folder.log.write_bytes(bytes(20 * LARGEST))
    other.log.write_bytes(bytes(SMALLEST))
    begun, go_on = threading.Event(), threading.Event()
    slow = LogTeller(lambda piece: (begun.set(), go_on.wait(PATIENCE), heard(piece)))
    slow.follow(folder)
    slow.grown(folder.name, 20 * LARGEST)
    assert begun.wait(PATIENCE)
    slow.follow(other)
    slow.grown(other.name, SMALLEST)
    go_on.set()
    heard.wait(lambda: len(heard.told) == 21)
    assert [piece.revision for piece in heard.told].index(2) <= 2
    slow.close()


def test_from_an_offset(teller, heard, folder):
    """Of a log that an earlier process has told, the rest."""
    folder.log.write_bytes(b"0123456789")
    teller.follow(folder, 4)
    assert teller.finish(folder.name, 10, PATIENCE)
    assert [(piece.offset, piece.data) for piece in heard.told] == [(4, b"456789")]


@pytest.mark.parametrize("size", [0, 10])
def test_a_log_that_is_not_there(teller, heard, folder, size):
    """Nothing is told, and nobody waits."""
    teller.follow(folder)
    assert teller.finish(folder.name, size, PATIENCE)
    assert teller.finish("unknown", size, PATIENCE)
    assert heard.told == []


def test_the_end_does_not_wait_for_ever(folder):
    """Whoever is told hangs."""
    begun, release = threading.Event(), threading.Event()
    teller = LogTeller(lambda piece: (begun.set(), release.wait(PATIENCE)))
    folder.log.write_bytes(b"x")
    teller.follow(folder)
    assert not teller.finish(folder.name, 1, 0.05)
    assert begun.wait(PATIENCE)
    release.set()
    teller.close()
