"""What comes after tasks that etcd has forgotten: an hour later by a clock that is set, in a plan and by an option."""

from __future__ import annotations

import time

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.etcd.store import RangeResult
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.results.archive import open_archive
from dtf_lightning.farm.results.archivist import ArchiveSettings, Archivist
from dtf_lightning.farm.results.store import FarmResults
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.tokens import read_token
from support.farm.results import SetClock
from support.farm.server import DEADLINE, CoordinatorInThread, PlayedWorker

pytestmark = pytest.mark.process

HOUR = 3600.0


def an_hour_passes(memory, folder):
    """The archivist's rounds, between two lives of its coordinator: results are archived, and then forgotten by etcd."""
    results, clock = FarmResults(folder / "results-c0.duckdb"), SetClock()
    clock.now = time.time()
    with FarmRecord(memory, "f") as record:
        archivist = Archivist(
            results, open_archive(str(folder / "archive")), memory, record.keys, record.write,
            settings=ArchiveSettings(), name="c0", read_again=lambda: None, clock=clock,
        )  # fmt: skip
        archivist.round()
        clock.now += HOUR
        forgotten = archivist.round().forgotten
    results.close()
    return forgotten


def listed(memory, kind: Kind) -> RangeResult:
    return memory.range(FarmKeys("f").folder(kind))


def test_an_hour_later(memory, tmp_path, monkeypatch, capsys):
    first = CoordinatorInThread(memory, tmp_path)
    worker = PlayedWorker((first.url,), read_token(first.token_file))
    try:
        with first.client() as client:
            good, bad = client.submit(["x"], name="good"), client.submit(["x"], name="bad")
            for _ in range(2):
                order = worker.next()
                worker.end(order, OutcomeKind.COMPLETED if order.task == good else OutcomeKind.FAILED)
            assert [client.wait(task, DEADLINE).status for task in (good, bad)] == ["completed", "failed"]
            assert {told["task_id"] for told in client.results()} == {good, bad}  # they are in the database
    finally:
        worker.close()
        first.stop()
    assert an_hour_passes(memory, tmp_path / "files") == 2
    assert listed(memory, Kind.DONE).kvs == ()
    for kv in listed(memory, Kind.TOMBSTONE).kvs:
        memory.delete(kv.key)  # days later; the database alone knows how they ended
    again = CoordinatorInThread(memory, tmp_path)
    worker = PlayedWorker((again.url,), read_token(again.token_file))
    try:
        with again.client() as client:
            plan = new_task_id(time.time())
            text = f"tasks:\n  a: {{run: x, after: {good}}}\n  b: {{run: x, after: {bad}}}\n  c: {{run: x, after: {{{bad}: any}}}}\n"
            told = client.connection.ask("POST", "/api/plans", {"plan_id": plan, "plan": text})["tasks"]
            a, b, c = (one["task_id"] for one in told)
            assert {worker.next().task, worker.next().task} == {a, c}
            skipped = client.wait(b, DEADLINE)
            assert (skipped.status, skipped.reason) == (
                "skipped",
                f"skipped: it comes after {bad}, which ended as failed",
            )
            with pytest.raises(FarmRefused, match="which this farm does not know"):
                client.submit(["x"], after=[new_task_id(time.time())])
        monkeypatch.chdir(tmp_path)
        where = ["--farm", again.url, "--token-file", str(again.token_file)]
        assert main(["farm", "submit", *where, "--no-source", "--after", bad, "--", "x"]) == 0
        with again.client() as client:
            assert client.wait(capsys.readouterr().out.strip(), DEADLINE).status == "skipped"
    finally:
        worker.close()
        again.stop()
