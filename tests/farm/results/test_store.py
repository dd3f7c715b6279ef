"""The database of a farm's results: a row for each task, whole changes, questions that change nothing."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from dtf_lightning.database.connection import DatabaseError
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.record.values import TaskOutcome
from dtf_lightning.farm.results import store
from dtf_lightning.farm.results.query import query
from dtf_lightning.farm.results.rows import SeenFailure, SeenResult
from dtf_lightning.farm.results.store import FarmResults, Forgettable, ResultsBusy, Status, Wanted
from dtf_lightning.farm.results.tables import NotAnArchive, from_parquet, to_parquet
from dtf_lightning.farm.rules.paging import LAST, Order, Place
from support.farm.results import ENVELOPE, FAILED


def seen(task: str, *, at: float = 100.0, recorded: int = 9, **fields) -> SeenResult:
    return SeenResult(task=task, envelope=replace(ENVELOPE, **fields), recorded=recorded, seen=at)


@pytest.fixture
def results():
    with_tables = FarmResults()
    yield with_tables
    with_tables.close()


def test_an_envelope_comes_back_as_it_was(results):
    results.take_in([seen("t")])
    assert results.envelope("t") == ENVELOPE
    assert results.envelope("u") is None


def test_a_task_is_one_row_however_often_it_is_seen(results):
    """In one batch, in a later one, in a reading of etcd and in the archive: its metrics and failures are not doubled."""
    failure = SeenFailure(task="t", number=1, failed=FAILED)
    results.take_in([seen("t"), seen("t")], [failure, failure])
    results.take_in([seen("t", recorded=10, project="other")], [failure])
    results.take_reading([seen("t")], [failure])
    results.take_file("f", results.unarchived(10))
    results.take_file("f", from_parquet(to_parquet(results.unarchived(10)), "f"))
    answer = query(results, "SELECT (SELECT count(*) FROM farm.results), (SELECT count(*) FROM farm.failed_attempts)")
    assert answer.rows == [(1, 1)]
    assert query(results, "SELECT name, value FROM farm.metrics ORDER BY name").rows == [
        ("cpu_seconds", 1.25), ("loss", 0.5), ("peak_memory", 4096.0)
    ]  # fmt: skip
    assert query(results, "SELECT task, name, value FROM farm.counts").rows == [("t", "passed", 12)]
    assert results.envelope("t").project == "vision"


def test_a_change_is_whole_or_not_at_all(results):
    """The database ends a file's taking half-way: what it had added by then is gone again."""
    results.take_in([seen("t")])
    table = results.unarchived(1)
    with pytest.raises(DatabaseError, match="failed_attempts"):
        results.take_file("f", table.drop_columns("failed_attempts").set_column(0, "task", [["u"]]))
    assert results.known_files() == set()
    assert results.envelope("u") is None


def test_values_that_no_column_can_hold(results):
    """The rest of the row is kept, and says which fields were not."""
    results.take_in([
        seen("t", ended=1e300, started=float("nan"), counts={"few": 2, "many": 2**70}, exit_code=-(2**64)),
        seen("u", tail="a\0b\udc80", name="ä", metrics={"x": float("inf")}),
    ])  # fmt: skip
    (row,) = results.page(Wanted(task="t"), limit=5)
    assert row["problems"] == [
        f"exit_code: got {-(2**64)}, expected a number of 64 bits",
        "started: got nan, expected seconds since the epoch",
        "ended: got 1e+300, expected seconds since the epoch",
        f"counts.many: got {2**70}, expected a number of 64 bits",
    ]
    assert results.envelope("t") == replace(ENVELOPE, ended=None, started=None, counts={"few": 2}, exit_code=None)
    assert results.envelope("u") == replace(ENVELOPE, tail="a\0b?", name="ä", metrics={"x": float("inf")})


class TestWhatEtcdKeeps:
    def test_until_it_forgets(self, results):
        results.take_in([seen("t"), seen("u")], forgotten=["t"])
        assert results.counts() == {"results": 2, "kept_in_etcd": 1, "not_in_archive": 1}
        results.forget(["u"])
        assert results.counts() == {"results": 2, "kept_in_etcd": 0, "not_in_archive": 0}

    def test_a_reading_is_the_truth(self, results):
        """What it does not show was forgotten while nobody here looked."""
        results.take_in([seen("t"), seen("u")])
        results.take_reading([seen("u"), seen("v")], [])
        assert results.unarchived(10).column("task").to_pylist() == ["u", "v"]
        results.take_reading([], [])
        assert results.counts() == {"results": 3, "kept_in_etcd": 0, "not_in_archive": 0}

    def test_only_what_a_file_has_may_be_forgotten(self, results):
        """And only when it is old enough."""
        failures = [SeenFailure(task="t", number=number, failed=FAILED) for number in (2, 1)]
        results.take_in([seen("t"), seen("u", recorded=11)], failures)
        results.take_in([seen("v", at=500.0)])
        assert results.forgettable(1000.0, 10) == []
        results.note_file("2026-01-01/a.parquet", results.unarchived(1))
        first = Forgettable(task="t", recorded=9, outcome=TaskOutcome.COMPLETED, failed=(1, 2))
        assert results.forgettable(1000.0, 10) == [first]
        results.note_file("2026-01-02/b.parquet", results.unarchived(10))
        second = Forgettable(task="u", recorded=11, outcome=TaskOutcome.COMPLETED, failed=())
        assert results.forgettable(500.0, 10) == [first, second]
        assert results.forgettable(1000.0, 1) == [first]
        assert results.kept() == (["2026-01-01/a.parquet", "2026-01-02/b.parquet"], "t")

    def test_a_file_that_was_seen_before_the_result(self, results):
        """Its results are in the archive, whenever etcd shows them: by the watch, or by a reading."""
        other = FarmResults()
        other.take_in([seen("t"), seen("u")])
        results.take_file("a", other.unarchived(10))
        other.close()
        results.take_in([seen("t")])
        assert results.counts() == {"results": 2, "kept_in_etcd": 1, "not_in_archive": 0}
        results.take_reading([seen("t"), seen("u")], [])
        assert results.unarchived(10).num_rows == 0
        assert [one.task for one in results.forgettable(1000.0, 10)] == ["t", "u"]

    def test_files_that_are_gone_are_no_archive(self, results):
        results.take_in([seen("t"), seen("u")])
        results.note_file("a", results.unarchived(1))
        results.note_file("b", results.unarchived(1))
        assert results.forget_files(["a", "c"]) == 1
        assert results.unarchived(10).column("task").to_pylist() == ["t"]
        assert results.forget_files(["a"]) == 0


class TestFiles:
    def test_all_that_the_database_has(self, results):
        """Another database that is made of the file alone answers the same."""
        results.take_in([seen("t"), seen("u", metrics={}, exit_code=None, ended=None)], [
            SeenFailure(task="t", number=number, failed=FAILED) for number in (1, 2)
        ])  # fmt: skip
        data = to_parquet(results.unarchived(10))
        other = FarmResults()
        other.take_file("f", from_parquet(data, "f"))
        assert other.page(Wanted(), limit=10) == results.page(Wanted(), limit=10)
        assert other.counts() == {"results": 2, "kept_in_etcd": 0, "not_in_archive": 0}
        other.close()

    def test_one_of_a_newer_release(self, results, monkeypatch):
        monkeypatch.setattr("dtf_lightning.farm.results.tables.VERSION", 2)
        data = to_parquet(results.unarchived(10))
        monkeypatch.undo()
        with pytest.raises(
            NotAnArchive, match="f has version 2 of the archive's files, this release reads 1 to 1: upd"
        ):
            from_parquet(data, "f")

    @pytest.mark.parametrize("cut", [0, 3, 100])
    def test_a_damaged_one(self, results, cut):
        data = to_parquet(results.unarchived(10))
        with pytest.raises(NotAnArchive, match="f cannot be read as a file of the archive"):
            from_parquet(data[:cut], "f")


class TestPages:
    def tasks(self, results, *, limit: int = 10, before: str = "", **wanted) -> list[str]:
        behind = Place(before, before) if before else None
        return [row["task"] for row in results.page(Wanted(**wanted), limit=limit, behind=behind)]

    def test_filters(self, results):
        results.take_in([
            seen("a", project="x", workers=("w1", "w2")),
            seen("b", plan="p", outcome=TaskOutcome.FAILED),
            seen("c", name="n", outcome=TaskOutcome.SKIPPED, ended=None, workers=()),
            seen("d", ended=2_000_000_000.0),
        ])  # fmt: skip
        assert self.tasks(results, task="b") == ["b"]
        assert self.tasks(results, worker="w2") == ["a"]
        assert self.tasks(results, outcome=TaskOutcome.SKIPPED) == ["c"]
        assert self.tasks(results, status=Status.FAILURE) == ["c", "b"]
        assert self.tasks(results, project="x") == ["a"]
        assert self.tasks(results, plan="p") == ["b"]
        assert self.tasks(results, name="n") == ["c"]
        assert self.tasks(results, since=2_000_000_000.0) == ["d"]
        assert self.tasks(results, until=2_000_000_000.0) == ["b", "a"]
        assert self.tasks(results, project="'; DROP TABLE farm.results; --") == []
        assert self.tasks(results, name="\udc80\0") == []
        with pytest.raises(SettingsError, match="1e\\+300 is no time"):
            self.tasks(results, since=1e300)

    @pytest.mark.parametrize(
        ("status", "fields"),
        [
            (Status.SUCCESS, {}),
            (Status.FAILURE, {"outcome": TaskOutcome.FAILED, "kind": "failed"}),
            (Status.PARTIAL, {"outcome": TaskOutcome.FAILED, "kind": "timeout"}),
            (Status.PARTIAL, {"outcome": TaskOutcome.CANCELLED, "counts": {}, "artifacts": {}}),
            (Status.FAILURE, {
                "outcome": TaskOutcome.CANCELLED, "counts": {}, "artifacts": {}, "metrics": {"cpu_seconds": 1.0}
            }),
            (Status.FAILURE, {"outcome": TaskOutcome.SKIPPED, "kind": ""}),
        ],
    )  # fmt: skip
    def test_the_requirements_word_for_an_end(self, results, status, fields):
        results.take_in([seen("t", **fields)])
        (row,) = results.page(Wanted(status=status), limit=5)
        assert row["status"] == status.value

    def test_page_by_page(self, results):
        results.take_in([seen(task) for task in "abcde"], [SeenFailure(task="c", number=1, failed=FAILED)])
        assert self.tasks(results, limit=2) == ["e", "d"]
        assert self.tasks(results, limit=2, before="d") == ["c", "b"]
        assert self.tasks(results, limit=2, before="b") == ["a"]
        assert [len(row["failed_attempts"]) for row in results.page(Wanted(), limit=3)] == [0, 0, 1]

    @pytest.mark.parametrize("field", sorted(store.SORTED_BY))
    @pytest.mark.parametrize("descending", [False, True])
    def test_sorted_as_python_sorts(self, results, field, descending):
        """So that what is not done, which is sorted in memory, can be merged with it."""
        rows = [
            seen("a", name="é", project="b", started=3.0, ended=None, workers=()),
            seen("b", name="Z", project="a", started=None, ended=9.0, workers=("w10",)),
            seen("c", name="a", project="b", started=2.000001, ended=8.5, workers=("w9", "w1")),
            seen("d", name="\U0001f600", project="", started=2.0, outcome=TaskOutcome.FAILED, kind="timeout"),
            seen("e", name="\uffff", project="a", started=2.0, outcome=TaskOutcome.SKIPPED),
        ]
        results.take_in(rows)

        def key(row):
            told = row.envelope
            times = {"started": told.started, "ended": told.ended}
            if field == "recorded":
                return row.recorded
            if field in times:
                return LAST if times[field] is None else round(times[field] * 1e6)
            (shown,) = results.page(Wanted(task=row.task), limit=1)
            worker = told.workers[0] if told.workers else ""
            return {
                "created": row.task,
                "worker": worker,
                **{n: shown[n] for n in ("name", "project", "outcome", "status")},
            }[field]

        wanted = sorted(((key(row), row.task) for row in rows), reverse=descending)
        order, behind, found = Order(field, descending), None, []
        while page := results.page(Wanted(), limit=2, order=order, behind=behind):
            found += [(row["sort_key"], row["task"]) for row in page]
            behind = Place(*found[-1])
        assert found == wanted


class TestQuestions:
    @pytest.mark.parametrize(
        ("sql", "problem"),
        [
            ("DELETE FROM farm.results", "the query has DELETE; expected one SELECT"),
            ("SELECT 1; SELECT 2", "the query has SELECT and SELECT; expected one SELECT"),
            ("", "the query has no statement"),
            ("SELEC 1", "the query cannot be read: .*syntax error"),
            ("SELECT '\ud800'", "the query cannot be read: .*surrogates not allowed"),
            ("FROM sql_auto_complete('s')", "the query failed"),
            ("FROM nowhere", "the query failed: .*nowhere"),
            ("FROM read_csv('/etc/passwd')", "the query failed: .*disabled by configuration"),
            ("FROM glob('/*')", "the query failed: .*disabled by configuration"),
            ("COPY farm.results TO '/tmp/x.csv'", "the query has COPY"),
            ("ATTACH '/tmp/x.duckdb'", "the query has ATTACH"),
            ("SET threads = 8", "the query has SET"),
            (
                "WITH x AS (INSERT INTO farm.archive_files VALUES ('f', 1) RETURNING *) FROM x",
                "the query failed: .*read-only",
            ),
            ("FROM ENVELOPE", "the query failed: .*ENVELOPE does not exist"),
        ],
    )
    def test_that_are_refused(self, results, sql, problem):
        """They change nothing, and the next one is answered."""
        with pytest.raises(SettingsError, match=f"(?s){problem}"):
            query(results, sql)
        assert query(results, "SELECT count(*) FROM farm.archive_files").rows == [(0,)]

    def test_an_answer_with_its_columns(self, results):
        results.take_in([seen("t")])
        answer = query(results, "SELECT task, epoch(ended) AS ended, command FROM farm.results")
        assert answer.columns == ("task", "ended", "command")
        assert answer.rows == [("t", 1_800_000_002.75, ["pytest", "tests/"])]
        assert not answer.truncated

    def test_a_long_answer_is_cut_off(self, results):
        answer = query(results, "FROM range(10)", limit=3)
        assert answer.rows == [(0,), (1,), (2,)]
        assert answer.truncated

    def test_one_that_takes_too_long(self, results):
        """It is ended; the connection serves the next one."""
        endless = "WITH RECURSIVE n AS (SELECT 1 AS i UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
        with pytest.raises(SettingsError, match=r"the query was ended after 0\.05 s"):
            query(results, endless, timeout=0.05)
        for _ in range(store.NUM_READERS):
            assert query(results, "SELECT 1").rows == [(1,)]

    def test_too_many_at_once(self, results, monkeypatch):
        monkeypatch.setattr(store, "READER_PATIENCE", 0.01)
        held, free = threading.Barrier(store.NUM_READERS + 1), threading.Event()

        def hold():
            with results.reading():
                held.wait(10)
                free.wait(10)

        threads = [threading.Thread(target=hold) for _ in range(store.NUM_READERS)]
        for thread in threads:
            thread.start()
        held.wait(10)
        with pytest.raises(ResultsBusy, match="4 questions are being answered"):
            results.envelope("t")
        results.take_in([seen("t")])  # writing goes on beside them
        free.set()
        for thread in threads:
            thread.join()
        assert results.envelope("t") == ENVELOPE


def test_a_file_that_is_kept(tmp_path):
    """Closed and opened again it has the same rows; while it is open no other process's coordinator may have it."""
    path = tmp_path / "results.duckdb"
    results = FarmResults(path)
    results.take_in([seen("t")], [SeenFailure(task="t", number=1, failed=FAILED)])
    results.close()
    results.close()
    again = FarmResults(path)
    assert again.envelope("t") == ENVELOPE
    assert again.counts() == {"results": 1, "kept_in_etcd": 1, "not_in_archive": 1}
    again.close()


def test_a_question_that_is_being_answered_when_it_closes(monkeypatch):
    """It is waited for, and ended where it takes long, also if it began late; nothing is closed under its hands."""
    monkeypatch.setattr(store, "LAST_ANSWERS", 0.01)
    results = FarmResults()
    asked, ended, told = threading.Event(), threading.Event(), []

    class Reader:
        def __init__(self, reader) -> None:
            self.close = reader.close
            self._interrupt = reader.interrupt

        def interrupt(self) -> None:
            self._interrupt()
            ended.set()

    results._all_readers = [Reader(reader) for reader in results._all_readers]

    def ask():
        try:
            with results.reading() as reader:
                asked.set()
                ended.wait(60)  # it begins after the first try to end it
                reader.execute("SELECT count(*) FROM range(100000000) a, range(100000) b").fetchall()
        except ResultsBusy as error:
            told.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    assert asked.wait(10)
    results.close()
    results.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(told) == 1
    assert "INTERRUPT" in told[0].upper()
