"""Event logs become rows: all of them, once, whatever state the files are in."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import fields, replace

import duckdb
import pytest

from dtf_lightning.elastic.events import ELASTIC_EVENTS, GenerationFormed, NodeJoined, StepsDone
from dtf_lightning.elastic.reports import store as store_module
from dtf_lightning.elastic.reports import text
from dtf_lightning.elastic.reports.report_data import gather
from dtf_lightning.elastic.reports.schema import RESULTS, VIEWS
from dtf_lightning.elastic.reports.step_samples import COLUMNS, line_pattern
from dtf_lightning.elastic.reports.store import ResultsStore
from dtf_lightning.errors import SettingsError
from dtf_lightning.events.log import EventLog, events_path, read_events
from support.calls import num_calls
from support.elastic.reports import BALANCE


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


def test_instances(store, resumed_run_dir):
    """A run that was resumed under its id has two first generations, and nothing of one is counted for the other."""
    store.sync(resumed_run_dir)
    (run,) = store.rows("FROM runs")
    assert (run["workers"], run["generations"], run["steps"]) == (3, 3, 30)
    assert run["goodput"] == pytest.approx(15.5 / 25)
    of_generations = "SELECT instance, generation, world_size, step, failed FROM generations ORDER BY ALL"
    assert store.query(of_generations).fetchall() == [(1, 1, 2, 0, []), (1, 2, 1, 12, ["b#1"]), (2, 1, 1, 15, [])]
    assert store.query("SELECT instance, worker, ending FROM workers ORDER BY ALL").fetchall() == [
        (1, "a/0", "finished"), (1, "b/0", "killed"), (2, "a/0", "finished"),
    ]  # fmt: skip
    assert store.query("SELECT instance, wall FROM goodput WHERE worker = 'a/0' ORDER BY ALL").fetchall() == [
        (1, 10), (2, 9),
    ]  # fmt: skip
    assert store.query("SELECT instance, generation, step FROM steps ORDER BY ALL").fetchall() == [
        (1, 1, 10), (1, 2, 20), (1, 2, 25), (2, 1, 20), (2, 1, 30),
    ]  # fmt: skip
    assert store.query("SELECT instance, path FROM checkpoints ORDER BY ALL").fetchall() == [
        (1, "c1"), (1, "c2"), (2, "c3"),
    ]  # fmt: skip
    assert store.query("SELECT instance, step, value FROM evaluations ORDER BY ALL").fetchall() == [
        (1, 20, 0.8), (2, 20, 0.9),
    ]  # fmt: skip
    assert store.query("SELECT DISTINCT instance, generation FROM costs ORDER BY ALL").fetchall() == [(1, 1), (2, 1)]
    assert store.rows(BALANCE) == []


def test_account_of_instances(store, resumed_run_dir):
    """The report tells the instances' generations apart, and what was trained beyond the step at which the
    second one begins is in no curve."""
    store.sync(resumed_run_dir)
    account = gather(store, "r")
    assert [generation["label"] for generation in account["generations"]] == ["1.1", "1.2", "2.1"]
    assert [g["worst_pause"] for g in account["generations"]] == [None, 0.1, None]
    stays = {(w["worker"], w["instance"]): [stay["label"] for stay in w["stays"]] for w in account["timeline"]}
    assert stays == {("a/0", 1): ["1.1", "1.2"], ("b/0", 1): ["1.1"], ("a/0", 2): ["2.1"]}
    curves = account["curves"]
    assert list(zip(curves["step"], curves["loss"], strict=True)) == [(10, 1.0), (20, 0.6), (30, 0.3)]
    assert account["evaluations"] == {"val/accuracy": [[20, 0.9]]}
    shown = "\n".join(text.lines(account))
    assert "3 generations of 2 instances (2.1 is the first generation of the second) by 3 workers" in shown
    assert "\n2.1 " in shown


def test_account_of_one_instance(store, run_dir):
    store.sync(run_dir)
    account = gather(store, "r")
    assert [generation["label"] for generation in account["generations"]] == ["1", "2"]
    assert "instance" not in "\n".join(text.lines(account))


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


@pytest.mark.parametrize(
    ("name", "value"),
    [("step", "10"), ("steps", 1.5), ("step", 10**30), ("loss", "low"), ("at", 1e300), ("at", -1.0), ("loss", [1])],
)
def test_step_lines_are_checked(store, run_dir, name, value):
    """The many take a fast way into the database; a value that cannot be is found there, too."""
    path = run_dir / "events" / "a.0.1.jsonl"
    line = next(line for line in path.read_text().splitlines() if '"kind":"steps"' in line)
    with path.open("a") as file:
        file.write(json.dumps({**json.loads(line), name: value}, separators=(",", ":")) + "\n")
    number = path.read_text().count("\n")
    (problem,) = store.sync(run_dir).corrupt
    assert problem.startswith(f"{path}:{number}: steps: {name} is {value!r}, which it cannot be")
    assert store.rows("SELECT line FROM corrupt_lines") == [{"line": number}]
    assert store.query("SELECT count(*) FROM steps").fetchall() == [(2,)]


def test_every_field_of_a_step_has_its_column():
    """Lines that the event log writes take the fast way; a new field needs a column and a migration."""
    assert [field.name for field in fields(StepsDone)] == list(COLUMNS)
    with ResultsStore() as store:
        columns = store.rows("SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = 'step_samples'")
    types = {column["column_name"]: column["data_type"] for column in columns[3:]}
    assert types == {"time": "TIMESTAMP", **{name: kind.sql for name, kind in COLUMNS.items() if name != "at"}}
    (line,) = [json.dumps(STEP.to_json(), separators=(",", ":"))]
    assert duckdb.execute("SELECT regexp_full_match(?, ?)", [line, line_pattern()]).fetchall() == [(True,)]


STEP = StepsDone(
    at=1.7e9, source="a-1/0", generation=1, world_size=2, rank=0, epoch=0, step=7, steps=7, seconds=1.5e-05, samples=8,
    data_wait=0.0, loss=None, lr=1e-3, rss=5, device_memory=None,
)  # fmt: skip


def test_step_lines_of_older_versions(store, run_dir):
    """Are rows of `steps` like all others."""
    path = run_dir / "events" / "a.0.1.jsonl"
    path.write_text(path.read_text().replace('"v":2,"kind":"steps"', '"v":1,"kind":"steps"'))
    assert store.sync(run_dir).corrupt == []
    assert store.query("SELECT step, loss FROM steps ORDER BY step").fetchall() == [(10, 1.0), (20, 0.5)]


def test_typed_rows_in(store, run_dir):
    """What a sync reads from files can be added as events, too; all of a call or nothing."""
    for path in sorted(run_dir.glob("events/*.jsonl")):
        events = list(read_events(ELASTIC_EVENTS, path))
        assert store.add("r", events, file=path.name) == len(events)
    with ResultsStore() as synced:
        synced.sync(run_dir)
        for view in VIEWS.keys() - {"runs"}:
            assert sorted(map(repr, store.rows(f"FROM {view}"))) == sorted(map(repr, synced.rows(f"FROM {view}")))
    before = everything(store)
    with pytest.raises(SettingsError, match=r"not added.*: more:2: steps: step is 1e\+99|more:2: steps: step is 1000"):
        store.add("r", [STEP, StepsDone(**{**STEP.__dict__, "step": 10**99})], file="more")
    assert everything(store) == before


def test_arrow_out(store, run_dir):
    """A relation, or Arrow's table."""
    pyarrow = pytest.importorskip("pyarrow", reason="Arrow needs pyarrow: pip install 'dtf-lightning[arrow]'")
    store.sync(run_dir)
    table = store.arrow("SELECT step, loss FROM steps WHERE run = ? ORDER BY step", ["r"])
    assert isinstance(table, pyarrow.Table)
    assert table.to_pydict() == {"step": [10, 20], "loss": [1.0, 0.5]}


def test_broken_ledger(store, run_dir):
    """No audit is better than one of half the samples; the line is counted like one of a log."""
    path = run_dir / "ledger" / "a.0.1.jsonl"
    path.write_text("nonsense\n" + path.read_text())
    store.sync(run_dir)
    (corrupt,) = store.rows("SELECT file, line, problem FROM corrupt_lines")
    assert (corrupt["file"], corrupt["line"]) == ("ledger/a.0.1.jsonl", 1)
    assert corrupt["problem"].startswith("not a ledger line: b'nonsense'")
    assert store.rows("FROM audits") == []
    path.write_text(path.read_text().partition("\n")[2])  # mended: a ledger is looked at whenever it changes
    store.sync(run_dir)
    assert store.rows("FROM corrupt_lines") == []
    assert len(store.rows("FROM audits")) == 1


def test_agents_alone(store, tmp_path):
    """In restart mode scripts know nothing of us: generations and nodes come from the agents' logs."""
    log = EventLog(ELASTIC_EVENTS, events_path(tmp_path / "r", "a"))
    log.write(NodeJoined(at=5.0, source="a", node="a", incarnation=1, num_workers=1))
    log.write(GenerationFormed(at=6.0, source="a", generation=1, rescale="start", reason="all are here",
                               members=("a#1",), world_size=1))  # fmt: skip
    log.close()
    store.sync(tmp_path / "r")
    account = gather(store, "r")
    assert (account["run"]["started"], account["run"]["seconds"]) == ("1970-01-01 00:00:05 UTC", 1.0)
    assert [(g["generation"], g["world_size"], g["step"]) for g in account["generations"]] == [(1, 1, None)]


def test_newer_version_rolls_everything_back(store, run_dir):
    with (run_dir / "events" / "b.0.1.jsonl").open("a") as file:
        file.write('{"v":99,"kind":"x"}\n')
    with pytest.raises(SettingsError, match=r"b\.0\.1\.jsonl:4: event version 99.*upgrade"):
        store.sync(run_dir)
    assert store.rows("FROM runs") == []


def test_folder_of_another_program(store, tmp_path):
    """Without event logs, and with files of that name that hold none; nothing of it is kept."""
    with pytest.raises(SettingsError, match="is no run's folder"):
        store.sync(tmp_path)
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "x.jsonl").write_text('{"event": "click"}\n{"event": "scroll"}\n')
    with pytest.raises(
        SettingsError, match=r"no line in its events/\*\.jsonl is an event, the first is .*x\.jsonl:1: "
    ):
        store.sync(tmp_path)
    assert store.rows("FROM runs") == store.rows("FROM corrupt_lines") == []


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
    for read_only in (False, True):
        with pytest.raises(
            SettingsError, match=f"schema version 99, this program knows {len(RESULTS.migrations)}: use a newer"
        ):
            ResultsStore(path, read_only=read_only)
    with duckdb.connect(str(tmp_path / "foreign.duckdb")) as foreign:
        foreign.execute("CREATE TABLE mine (x INT)")
    with pytest.raises(SettingsError, match="another program"):
        ResultsStore(tmp_path / "foreign.duckdb")


def test_migrations_one_by_one(tmp_path, run_dir, monkeypatch):
    """A database of the first version becomes one of the newest; a step that fails leaves the version before it."""
    path = tmp_path / "x.duckdb"
    with monkeypatch.context() as older:
        older.setattr(store_module, "RESULTS", replace(RESULTS, migrations=RESULTS.migrations[:1]))
        ResultsStore(path).close()
    with pytest.raises(
        SettingsError, match=r"schema version 1, this program reads \d+: bring it up to date with dtf res"
    ):
        ResultsStore(path, read_only=True)

    def breaks(connection):
        connection.execute("CREATE TABLE half (x INT)")
        raise RuntimeError("no")

    with monkeypatch.context() as broken:
        broken.setattr(store_module, "RESULTS", replace(RESULTS, migrations=[*RESULTS.migrations, breaks]))
        with pytest.raises(RuntimeError):
            ResultsStore(path)
    with ResultsStore(path) as store:
        versions = store.rows("SELECT version FROM dtf_schema ORDER BY version")
        assert [row["version"] for row in versions] == list(range(1, len(RESULTS.migrations) + 1))
        assert store.rows("SELECT table_name FROM duckdb_tables() WHERE table_name = 'half'") == []
        store.sync(run_dir)
        assert len(store.rows("FROM runs")) == 1


def test_rows_of_before_there_were_instances(tmp_path, monkeypatch):
    """They stay; costs, which lie in the order of time, get the instance that they belong to."""
    path = tmp_path / "x.duckdb"
    with monkeypatch.context() as older:
        older.setattr(store_module, "RESULTS", replace(RESULTS, migrations=RESULTS.migrations[:2]))
        with ResultsStore(path) as store:
            for run, generation, lost in (("r", 1, 0), ("r", 2, 1), ("other", 2, 0), ("r", 1, 0), ("r", 2, 7)):
                row = [run, generation, 12, 8, lost, 1, 4, 4, 0]
                store.connection.execute("INSERT INTO costs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
    with ResultsStore(path) as store:
        found = store.query("SELECT run, instance, generation, steps_lost FROM costs ORDER BY ALL").fetchall()
    assert found == [("other", 1, 2, 0), ("r", 1, 1, 0), ("r", 1, 2, 1), ("r", 2, 1, 0), ("r", 2, 2, 7)]


def test_folder_that_cannot_be_written_to(tmp_path, run_dir):
    """The database and the export say what cannot be written; nothing is a traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"the database .*/file/x\.duckdb cannot be opened: "):
        ResultsStore(tmp_path / "file" / "x.duckdb")
    with ResultsStore() as store:
        store.sync(run_dir)
        with pytest.raises(SettingsError, match=r"the export to .*/file/out failed: "):
            store.export_parquet(tmp_path / "file" / "out")


def test_full_disk(tmp_path, run_dir):
    """A sync that finds no room says so, and the database is as it was before."""
    path = tmp_path / "x.duckdb"
    lines = (run_dir / "events" / "a.0.1.jsonl").read_text().splitlines(keepends=True)
    with ResultsStore(path) as store:
        before = everything(store)
        (run_dir / "events" / "big.0.1.jsonl").write_text("".join(lines) * 1_000)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        try:
            with pytest.raises(SettingsError, match=r"the sync of .* failed and changed nothing: "):
                store.sync(run_dir)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert everything(store) == before


HOLD = """
import sys
from dtf_lightning.elastic.reports.store import ResultsStore
with ResultsStore(sys.argv[1], read_only=sys.argv[2] == "read"):
    print("open", flush=True)
    sys.stdin.readline()
"""


@pytest.mark.process
@pytest.mark.parametrize("mode", ["write", "read"])
def test_somebody_else_has_it_open(tmp_path, run_dir, mode):
    """Who finds the file in use waits a while for it, then says who has it; many may read at once."""
    path = tmp_path / "x.duckdb"
    with ResultsStore(path) as store:
        store.sync(run_dir)
        before = everything(store)
    command = [sys.executable, "-c", HOLD, str(path), mode]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "open\n"
        if mode == "read":
            with ResultsStore(path, read_only=True) as reader:
                assert everything(reader) == before
        with pytest.raises(SettingsError, match=rf"x\.duckdb is in use, also after 0\.1 s: .*PID {holder.pid}"):
            ResultsStore(path, patience=0.1)
        holder.stdin.write("\n")
        holder.stdin.flush()
        with ResultsStore(path, patience=60) as store:
            assert everything(store) == before


WRITE = """
import sys
from dtf_lightning.elastic.events import ELASTIC_EVENTS, StepsDone
from dtf_lightning.events.log import EventLog, events_path
log = EventLog(ELASTIC_EVENTS, events_path(sys.argv[1], "c.0.1"))
for step in range(1, 20_001):
    log.write(StepsDone(at=1e6 + step, source="c/0", generation=1, world_size=1, rank=0, epoch=0, step=step, steps=1,
                        seconds=0.1, samples=4, data_wait=0.0))
    if step == 100:
        print("writes", flush=True)
"""


@pytest.mark.process
def test_readers_while_training_writes(tmp_path, run_dir):
    """Whatever moment of the writing a sync hits: whole lines only, each once; readers see one sync or the next."""
    path, seen = tmp_path / "x.duckdb", [0]
    with subprocess.Popen([sys.executable, "-c", WRITE, str(run_dir)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "writes\n"
        while seen[-1] < 20_000:
            with ResultsStore(path) as store:
                assert store.sync(run_dir).corrupt == []
            with ResultsStore(path, read_only=True) as one, ResultsStore(path, read_only=True) as other:
                for reader in (one, other):
                    counts = "SELECT count(*), count(DISTINCT step), max(step) FROM steps WHERE worker = 'c/0'"
                    ((rows, distinct, last),) = reader.query(counts).fetchall()
                    assert rows == distinct == last
                    assert last >= seen[-1]
                    seen.append(last)
    assert writer.returncode == 0


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


def test_wrong_sql(store, run_dir):
    """What DuckDB says, before it runs and while it runs."""
    with pytest.raises(SettingsError, match=r"the query failed: .*nowhere"):
        store.query("FROM nowhere")
    store.sync(run_dir)
    for ask in (store.text, store.rows):
        with pytest.raises(SettingsError, match=r"the query failed: .*Could not convert string 'a/0' to INT32"):
            ask("SELECT worker::INTEGER FROM steps")


def test_cost_of_a_line(store, run_dir):
    """What Python does for a line of a log is little, and no more where there are many (`benchmarks/results.py` has times)."""
    path = run_dir / "events" / "a.0.1.jsonl"
    line = next(line for line in path.read_text().splitlines(keepends=True) if '"kind":"steps"' in line)
    store.sync(run_dir)
    for lines in (1_000, 10_000):
        path.write_text(path.read_text() + line * lines)
        assert num_calls(lambda: store.sync(run_dir)) < 8 * lines
    assert store.query("SELECT count(*) FROM steps").fetchall() == [(11_002,)]


def test_buckets_sum_to_wall(store, run_dir):
    """The goodput view keeps every second that workers wrote down."""
    store.sync(run_dir)
    assert store.query(BALANCE).fetchall() == []
