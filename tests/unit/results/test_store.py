"""Event logs become rows: all of them, once, whatever state the files are in."""

from __future__ import annotations

import time

import duckdb
import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.results.schema import MIGRATIONS, VIEWS
from dtf_lightning.results.store import ResultsStore


def everything(store):
    return {name: sorted(map(repr, store.query(f"FROM {name}").fetchall())) for name in (*VIEWS, "audits", "costs")}


def test_views(store, run_dir):
    """One row for each thing that happened."""
    store.sync(run_dir)
    (run,) = store.rows("FROM runs")
    assert (run["run"], run["workers"], run["generations"], run["steps"]) == ("r", 2, 2, 20)
    assert run["goodput"] == pytest.approx(9.5 / 16)
    generations = store.rows("FROM generations ORDER BY generation")
    assert [(g["world_size"], g["step"], g["members"], g["failed"]) for g in generations] == [
        (2, 0, ["a#1", "b#1"], []),
        (1, 12, ["a#1"], ["b#1"]),
    ]
    (rescale,) = store.rows("FROM rescales")
    assert (rescale["pause"], rescale["wait"], rescale["first_step"], rescale["state"]) == (0.1, 0.03, 0.05, 0)
    assert store.query("SELECT worker, ending FROM workers ORDER BY worker").fetchall() == [
        ("a/0", "finished"),
        ("b/0", "killed"),
    ]
    assert store.query("SELECT step, global_batch, samples_per_second FROM steps ORDER BY step").fetchall() == [
        (10, 8, 40),
        (20, 4, 20),
    ]
    assert store.query("SELECT path, pruned IS NOT NULL FROM checkpoints ORDER BY path").fetchall() == [
        ("c1", True),
        ("c2", False),
    ]
    assert store.query("SELECT metric, value FROM evaluations").fetchall() == [("val/accuracy", 0.8)]
    (audit,) = store.rows("FROM audits")
    assert (audit["consumed"], audit["missing"], audit["repeated"], audit["padding"]) == (8, 0, 0, 1)


def test_twice_changes_nothing(store, run_dir):
    store.sync(run_dir)
    before = everything(store)
    report = store.sync(run_dir)
    assert (report.files, report.new_lines, everything(store)) == (0, 0, before)


def test_half_written_line_is_taken_when_it_is_whole(store, run_dir):
    """A sync may run at any moment of a write."""
    path = run_dir / "events" / "a.0.1.jsonl"
    data = path.read_bytes()
    for cut in (len(data) // 3, len(data) // 2, len(data)):
        path.write_bytes(data[:cut])
        assert store.sync(run_dir).corrupt == []
    with ResultsStore() as at_once:
        at_once.sync(run_dir)
        assert everything(store) == everything(at_once)


def test_corrupt_middle(store, run_dir):
    """Passed over, counted, and named with file and line; what is around it is there."""
    path = run_dir / "events" / "a.0.1.jsonl"
    lines = path.read_bytes().split(b"\n")
    lines[1:1] = [
        b"nonsense",
        b'{"v":2,"kind":"steps","at":1.0,"source":"a/0","generation":1}',
        b'{"v":2,"kind":"steps",\xff}',
        b'{"v":2,"kind":"steps",',
    ]
    path.write_bytes(b"\n".join(lines))
    report = store.sync(run_dir)
    assert [problem.partition("a.0.1.jsonl:")[2][:20] for problem in sorted(report.corrupt)] == [
        "2: expected one JSON",
        "3: steps: world_size",
        "4: expected one JSON",
        "5: expected one JSON",
    ]
    assert store.query("SELECT count(*) FROM corrupt_lines").fetchall() == [(4,)]
    assert store.query("SELECT corrupt_lines, steps FROM runs").fetchall() == [(4, 20)]


def test_newer_version_rolls_everything_back(store, run_dir):
    with (run_dir / "events" / "b.0.1.jsonl").open("a") as file:
        file.write('{"v":99,"kind":"x"}\n')
    with pytest.raises(SettingsError, match=r"b\.0\.1\.jsonl:4: event version 99.*upgrade"):
        store.sync(run_dir)
    assert store.rows("FROM runs") == []


def test_folder_of_another_program(store, tmp_path):
    with pytest.raises(SettingsError, match="is no run's folder"):
        store.sync(tmp_path)


def test_runs_of_one_name(store, run_dir, tmp_path):
    """Side by side; folders keep them apart."""
    for number in range(10):
        folder = tmp_path / str(number) / "r"
        folder.parent.mkdir()
        folder.symlink_to(run_dir)
        store.sync(folder)
    assert len(store.rows("FROM runs")) == 10
    assert store.query("SELECT count(*) FROM rescales").fetchall() == [(10,)]


def test_newer_and_foreign_databases(tmp_path, run_dir):
    """Refused with what to do; nothing is touched."""
    path = tmp_path / "x.duckdb"
    with ResultsStore(path) as store:
        store.connection.execute("INSERT INTO dtf_schema VALUES (99, NULL)")
    with pytest.raises(SettingsError, match=f"schema version 99, this program knows {len(MIGRATIONS)}: use a newer"):
        ResultsStore(path)
    with duckdb.connect(str(tmp_path / "foreign.duckdb")) as foreign:
        foreign.execute("CREATE TABLE mine (x INT)")
    with pytest.raises(SettingsError, match="another program"):
        ResultsStore(tmp_path / "foreign.duckdb")


def test_reader_beside_reader(tmp_path, run_dir):
    path = tmp_path / "x.duckdb"
    with ResultsStore(path) as store:
        store.sync(run_dir)
    with ResultsStore(path, read_only=True) as one, ResultsStore(path, read_only=True) as other:
        assert everything(one) == everything(other)


def test_parquet(store, run_dir, tmp_path):
    store.sync(run_dir)
    store.export_parquet(tmp_path / "out")
    assert duckdb.sql(f"SELECT count(*) FROM '{tmp_path}/out/steps.parquet'").fetchall() == [(2,)]


def test_wrong_sql(store):
    with pytest.raises(SettingsError, match=r"the query failed: .*nowhere"):
        store.query("FROM nowhere")


@pytest.mark.process
def test_a_million_steps(store, run_dir):
    """Under ten seconds, on an idle machine about three."""
    path = run_dir / "events" / "a.0.1.jsonl"
    line = next(line for line in path.read_text().splitlines(keepends=True) if '"kind":"steps"' in line)
    path.write_text(path.read_text() + line * 1_000_000)
    began = time.process_time()
    store.sync(run_dir)
    assert time.process_time() - began < 10
    assert store.query("SELECT count(*) FROM steps").fetchall() == [(1_000_002,)]


def test_buckets_sum_to_wall(store, run_dir):
    """The goodput view keeps every second that workers wrote down."""
    store.sync(run_dir)
    assert store.query(BALANCE).fetchall() == []


BALANCE = """
    SELECT worker, wall, total FROM (
        SELECT worker, wall, list_sum([productive, data_wait, validation, checkpoint, startup, waiting, rescale_unwind,
            rescale_group, rescale_state, rescale_wrap, rescale_first_step, lost]) AS total FROM goodput
    ) WHERE abs(total - wall) > 0.01 * wall
"""
