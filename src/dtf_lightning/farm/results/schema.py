"""The tables and views of a farm's results in DuckDB, all in the schema `farm`.

| table or view | one row for each | what |
|---|---|---|
| `results` | task that is done | its envelope: outcome, times, exit code, command, metrics and counts as maps, what a call returned, what was asked for, whose result it is; the file of the archive that has it |
| `metrics`, `counts` | number of a result | (task, name, value), a view of those maps |
| `failed_attempts` | attempt after which a task was tried again | |
| `kept` | result that is still in etcd | when it was first seen there by this coordinator |
| `archive_files` | file of the archive that was taken in, or written | |
| `verdicts` | comparison of two programs by one metric | its sentence, numbers and plan; in the file of who asked for it |
| `samples` | process of a comparison | what it measured |

All of it but verdicts and samples can be made anew from etcd and the archive. Times are UTC.
"""

from __future__ import annotations

from dtf_lightning.database.connection import Connection
from dtf_lightning.database.schema import Schema


def _tables(connection: Connection) -> None:
    connection.execute("""
        CREATE SCHEMA farm;
        CREATE TABLE farm.results (
            task VARCHAR PRIMARY KEY, project VARCHAR NOT NULL, plan VARCHAR NOT NULL, name VARCHAR NOT NULL,
            command VARCHAR[] NOT NULL, outcome VARCHAR NOT NULL, kind VARCHAR NOT NULL, reason VARCHAR NOT NULL,
            exit_code BIGINT, attempt BIGINT NOT NULL, revision BIGINT NOT NULL, workers VARCHAR[] NOT NULL,
            submitted TIMESTAMP, started TIMESTAMP, ended TIMESTAMP, metrics MAP(VARCHAR, DOUBLE) NOT NULL,
            counts MAP(VARCHAR, BIGINT) NOT NULL, artifacts MAP(VARCHAR, VARCHAR) NOT NULL, log_bytes BIGINT NOT NULL,
            tail VARCHAR NOT NULL, problems VARCHAR[] NOT NULL, recorded BIGINT NOT NULL, seen TIMESTAMP NOT NULL, file VARCHAR
        );
        CREATE TABLE farm.failed_attempts (
            task VARCHAR, number BIGINT, revision BIGINT NOT NULL, workers VARCHAR[] NOT NULL, reason VARCHAR NOT NULL,
            ended TIMESTAMP, PRIMARY KEY (task, number)
        );
        CREATE TABLE farm.kept (task VARCHAR PRIMARY KEY, seen TIMESTAMP NOT NULL);
        CREATE TABLE farm.archive_files (file VARCHAR PRIMARY KEY, tasks BIGINT NOT NULL);
    """)


def _views(connection: Connection) -> None:
    for name in ("metrics", "counts"):
        connection.execute(f"""
            CREATE OR REPLACE VIEW farm.{name} AS
            SELECT task, entry.key AS name, entry.value AS value
            FROM (SELECT task, unnest(map_entries({name})) AS entry FROM farm.results)
        """)


def _retries(connection: Connection) -> None:
    connection.execute("ALTER TABLE farm.results ADD COLUMN retry_of VARCHAR")
    connection.execute("ALTER TABLE farm.results ADD COLUMN asked VARCHAR")


def _verdicts(connection: Connection) -> None:
    connection.execute("""
        CREATE TABLE farm.verdicts (
            verdict VARCHAR PRIMARY KEY, made TIMESTAMP NOT NULL, base VARCHAR NOT NULL, candidate VARCHAR NOT NULL,
            metric VARCHAR NOT NULL, unit VARCHAR NOT NULL, state VARCHAR NOT NULL, p_value DOUBLE NOT NULL,
            num_pairs BIGINT NOT NULL, sentence VARCHAR NOT NULL, machine VARCHAR NOT NULL, comparison VARCHAR NOT NULL,
            told VARCHAR NOT NULL
        );
        CREATE TABLE farm.samples (
            verdict VARCHAR, place BIGINT, pair BIGINT NOT NULL, side VARCHAR NOT NULL, process VARCHAR NOT NULL,
            value DOUBLE NOT NULL, PRIMARY KEY (verdict, place)
        );
    """)


def _returned(connection: Connection) -> None:
    connection.execute("ALTER TABLE farm.results ADD COLUMN returned VARCHAR")


def _reuse(connection: Connection) -> None:
    connection.execute("ALTER TABLE farm.results ADD COLUMN fingerprint VARCHAR")
    connection.execute("ALTER TABLE farm.results ADD COLUMN reused_from VARCHAR")


RESULTS = Schema(
    migrations=(_tables, _views, _retries, _verdicts, _returned, _reuse),
    version_table="dtf_farm_schema",
    exported=("farm.results", "farm.metrics", "farm.counts", "farm.failed_attempts", "farm.verdicts", "farm.samples"),
    if_older="start a coordinator on it, which brings it up to date",
    if_newer="use a newer dtf-lightning, or delete the file: it is made anew from etcd and the archive",
    if_foreign="give the coordinator a folder of its own",
    if_in_use="Each coordinator has a file of its own, by its name: give this one another --name, or end the other one",
)
"""The schema of a coordinator's results."""
