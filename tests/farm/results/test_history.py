"""All parts of a coordinator's history together, with their threads, on files."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.errors import SettingsError
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.results import history as history_module
from dtf_lightning.farm.results.archivist import ArchiveSettings
from dtf_lightning.farm.results.history import History, HistoryPlace
from dtf_lightning.farm.results.store import ResultsBusy, Wanted
from support.farm.results import ENVELOPE, finish, shown

KEYS = FarmKeys("lab")
DEADLINE = 60.0


@pytest.fixture
def store():
    with MemoryStore() as made:
        yield made


@pytest.fixture
def record(store):
    with FarmRecord(store, "lab") as made:
        yield made


@pytest.fixture
def make(store, record, tmp_path):
    made: list[History] = []

    def make(name: str = "c/1", **settings: float) -> History:
        place = HistoryPlace(folder=tmp_path / "files", coordinator=name, archive=str(tmp_path / "archive"))
        history = History(store, record, place, settings=ArchiveSettings(**settings))
        made.append(history)
        history.open()
        return history

    yield make
    for history in made:
        history.close()


def test_a_leader_moves_results_to_the_archive(make, store, tmp_path):
    """Another coordinator, whose database is new, answers what only the archive has."""
    leader = make(keep=-1.0, interval=0.01)
    finish(store, KEYS, "t", failures=1)
    leader.read_again()
    assert leader.page(Wanted(), limit=5)[0]["task"] == "t"
    assert store.get(KEYS.key(Kind.DONE, "t")) is not None
    leader.lead(True)
    poll_until(lambda: store.get(KEYS.key(Kind.DONE, "t")) is None, DEADLINE, "the result to be archived")
    poll_until(lambda: leader.status()["archive"]["last_round"] is not None, DEADLINE, "the round to end")
    leader.close()
    assert [key.rpartition("/")[2] for key in (kv.key for kv in store.range(KEYS.prefix).kvs)] == ["t"]
    assert store.get(KEYS.key(Kind.TOMBSTONE, "t")) is not None
    assert len(list((tmp_path / "archive").glob("*/*-c%2F1-*.parquet"))) == 1
    other = make("d")
    other.read_again()
    assert other.query("SELECT count(*) FROM farm.results").rows == [(1,)]
    assert other.envelope("t").metrics == ENVELOPE.metrics
    assert other.status()["health"] == "healthy"


def test_a_question_sees_what_was_told_before_it(make):
    """Though batches wait for company."""
    history = make()
    for number in range(20):
        history.take(shown(f"{number}"))
    assert len(history.page(Wanted(), limit=100)) == 20


def test_before_it_is_open_and_after_it_is_closed(make, store, record, tmp_path):
    """Nothing is answered, and nobody who tells it anything is hurt."""
    never = History(store, record, HistoryPlace(folder=tmp_path, coordinator="x"))
    closed = make()
    closed.close()
    for history in (never, closed):
        history.take(shown("t"))
        history.read_again()
        history.lead(True)
        with pytest.raises(ResultsBusy, match="not open"):
            history.envelope("t")
        assert history.status()["health"] == "critical"
        history.close()
    assert not any(thread.name.startswith("dtf-farm-") for thread in threading.enumerate())


FULL_DISK = """
import resource, signal, sys
from dtf_lightning.clock import poll_until
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.record.keys import FarmKeys
from dtf_lightning.farm.results import tail as tail_module
from dtf_lightning.farm.results.store import FarmResults
from dtf_lightning.farm.results.tail import ResultsTail
from support.farm.results import shown

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
tail_module.PAUSE = 0.05
results = FarmResults(sys.argv[1])
tail = ResultsTail(results, MemoryStore(), FarmKeys("lab"))
tail.start()
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, most))
for number in range(2000):
    tail.take(shown(f"{number:04}"))
poll_until(lambda: tail.status().health.value == "critical", 30, "the disk to be full")
print(tail.status().reason)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
assert tail.catch_up(30)
print(tail.status().health.value, results.counts()["results"])
"""


def test_a_disk_that_is_full_for_a_while(tmp_path):
    """Results wait, which shows, and are written when there is room."""
    tests = Path(__file__).parents[2]
    told = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "x.duckdb")],
        capture_output=True, text=True, timeout=90, check=False, cwd=tests, env={**os.environ, "PYTHONPATH": str(tests)},
    )  # fmt: skip
    first, second = told.stdout.splitlines() or ["", told.stderr]
    assert first.startswith("results wait to be written: ")
    assert "Failed to commit" in first
    assert second == "healthy 2000"


def test_two_coordinators_of_one_name(make, tmp_path):
    """In one process DuckDB would share the file; another process is told whose it is."""
    make("c")
    code = (
        "from dtf_lightning.farm.results.store import FarmResults\n"
        f"FarmResults({str(tmp_path / 'files' / 'results-c.duckdb')!r}, patience=0.1)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "is in use, also after 0.1 s" in told.stderr
    assert "Each coordinator has a file of its own, by its name" in told.stderr


def test_a_file_of_another_program(make, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "results-c.duckdb").write_bytes(b"hello" * 1000)
    with pytest.raises(SettingsError, match="cannot be opened"):
        make("c")


def test_rounds_that_fail_are_told(make, store, tmp_path, monkeypatch):
    """The archive's folder is a file: a warning, and critical when it goes on."""
    monkeypatch.setattr(history_module, "LATE", 3)
    (tmp_path / "archive").write_text("in the way")
    history = make(interval=0.01)
    finish(store, KEYS, "t")
    history.lead(True)
    poll_until(lambda: history.status()["archive"]["health"] == "critical", DEADLINE, "rounds to fail")
    assert "rounds have failed, the last with: the archive" in history.status()["archive"]["reason"]
    assert "cannot be listed" in history.status()["archive"]["reason"]
    assert store.get(KEYS.key(Kind.DONE, "t")) is not None
