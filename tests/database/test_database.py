"""A database of any product: its schema of migrations, questions and exports, errors in the product's words."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from dtf_lightning.database.connection import connect, single, transaction
from dtf_lightning.database.database import Database
from dtf_lightning.database.schema import Schema
from dtf_lightning.errors import SettingsError


def first(connection):
    connection.execute("CREATE TABLE tasks (name VARCHAR, seconds DOUBLE)")


def second(connection):
    connection.execute("CREATE VIEW slow AS SELECT name FROM tasks WHERE seconds > 1")


SCHEMA = Schema(
    migrations=(first, second),
    version_table="factory_schema",
    exported=("tasks", "slow"),
    if_older="start the factory",
    if_newer="take a newer factory",
    if_foreign="give another file",
    if_in_use="Close the factory",
)


def test_migrations_questions_and_export(tmp_path):
    """An older file is brought up to date and keeps its rows; they come back as rows, text and Parquet."""
    path = tmp_path / "x.duckdb"
    with Database(replace(SCHEMA, migrations=(first,)), path) as database:
        database.connection.execute("INSERT INTO tasks VALUES ('a', 0.5), ('b', 2.0)")
    with pytest.raises(SettingsError, match=r"schema version 1, this program reads 2: start the factory"):
        Database(SCHEMA, path, read_only=True)
    with Database(SCHEMA, path) as database:
        assert database.rows("SELECT * FROM slow WHERE name <> ?", ["a"]) == [{"name": "b"}]
        assert "varchar" in database.text("FROM slow")
        assert [path.name for path in database.export_parquet(tmp_path)] == ["tasks.parquet", "slow.parquet"]
        with pytest.raises(SettingsError, match=r"the query failed: .*nowhere"):
            database.query("FROM nowhere")
        database.connection.execute("INSERT INTO factory_schema VALUES (3, NULL)")
    with pytest.raises(SettingsError, match=r"schema version 3, this program knows 2: take a newer factory"):
        Database(SCHEMA, path)


def test_a_failed_migration_changes_nothing(tmp_path):
    def breaks(connection):
        connection.execute("CREATE TABLE half (x INTEGER)")
        raise RuntimeError

    path = tmp_path / "x.duckdb"
    with pytest.raises(RuntimeError):
        Database(replace(SCHEMA, migrations=(first, breaks)), path)
    with Database(SCHEMA, path) as database:
        assert database.rows("SELECT table_name FROM duckdb_tables() ORDER BY ALL") == [
            {"table_name": "factory_schema"}, {"table_name": "tasks"},
        ]  # fmt: skip


def test_a_file_of_another_product(tmp_path):
    path = tmp_path / "x.duckdb"
    Database(SCHEMA, path).close()
    with pytest.raises(SettingsError, match="is a database of another program: give another file"):
        Database(replace(SCHEMA, version_table="other_schema"), path)


def test_transaction():
    with connect() as connection:
        first(connection)

        def fails():
            with transaction(connection):
                connection.execute("INSERT INTO tasks VALUES ('a', 1.0)")
                raise KeyError

        with pytest.raises(KeyError):
            fails()
        assert single(connection, "SELECT count(*) FROM tasks WHERE name = ?", ["a"]) == 0


@pytest.mark.process
def test_a_file_in_use(tmp_path):
    """Another process has it open: waited for, then said in the product's words."""
    path = tmp_path / "x.duckdb"
    holder = f"import duckdb, sys; c = duckdb.connect({str(path)!r}); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "open\n"
        with pytest.raises(SettingsError, match=r"is in use, also after 0.1 s: .* have it open\. Close the factory\. "):
            Database(SCHEMA, path, patience=0.1)
        process.stdin.close()
    Database(SCHEMA, path, patience=60).close()


ROWS = "SELECT 1 AS n, 'a|b' AS name, TIMESTAMP '2024-01-02 03:04:05' AS at, NULL AS gone FROM range(50)"


def test_answers_in_every_format():
    """All rows, not the first; what has no word in a format is written as text."""
    with Database(SCHEMA) as store:
        table = store.text(ROWS, "table").splitlines()
        assert (len(table), table[:2]) == (51, ["n  name  at                   gone", "1  a|b   2024-01-02T03:04:05"])
        assert store.text(ROWS, "csv").splitlines()[:2] == ["n,name,at,gone", "1,a|b,2024-01-02T03:04:05,"]
        markdown = store.text(ROWS, "markdown").splitlines()
        assert (len(markdown), markdown[2]) == (52, "| 1 | a\\|b | 2024-01-02T03:04:05 |  |")
        rows = json.loads(store.text(ROWS, "json"))
        assert (len(rows), rows[0]) == (50, {"n": 1, "name": "a|b", "at": "2024-01-02T03:04:05", "gone": None})
        assert "50 rows" in store.text(ROWS)


@pytest.mark.parametrize("sql", ["", "  ;"])
def test_no_answer(sql):
    with (
        Database(SCHEMA) as store,
        pytest.raises(SettingsError, match=r"the query has no answer: .* Expected a SELECT"),
    ):
        store.text(sql)


FULL_DISK = """
import os, resource, signal, sys
from dtf_lightning.database.connection import PassingError, connect, single, transaction

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
connection = connect(sys.argv[1])
connection.execute("CREATE TABLE t (x BLOB)")

def add():
    with transaction(connection):
        connection.execute("INSERT INTO t SELECT ?::BLOB FROM range(4)", [os.urandom(250_000)])

add()
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (2_500_000, most))
try:
    while True:
        add()
except PassingError as error:
    print(type(error).__name__)
before = single(connection, "SELECT count(*) FROM t")
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
add()
print(single(connection, "SELECT count(*) FROM t") - before)
"""


def test_a_disk_that_is_full_for_a_while(tmp_path):
    """A commit that the disk does not take says so, leaves no half of it, and the next one is made."""
    arguments = [sys.executable, "-c", FULL_DISK, str(tmp_path / "x.duckdb")]
    told = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (told.stdout.split(), told.returncode) == (["TransactionException", "4"], 0), told.stderr
