"""Results over real HTTP: lists, questions in SQL, tasks that only the archive knows."""

from __future__ import annotations

import json

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.clock import poll_until
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.values import TaskOutcome, Tombstone
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.tokens import read_token
from support.farm.server import DEADLINE, CoordinatorInThread, PlayedWorker

pytestmark = pytest.mark.process

FIELDS = [
    "result_id", "task_id", "worker_id", "test_id", "timestamp", "metrics", "status", "execution_time",
    "hardware_metrics", "environment", "raw_data", "metadata",
]  # fmt: skip
"""Of `Result` in the requirements, in their order."""


def done(client, worker, *kinds: OutcomeKind, command=("x",), fields=None, **told) -> str:
    """A task whose attempts end so; the last with what the worker tells."""
    if project := (fields or {}).get("project"):
        client.set_project(project)
    task = client.submit(list(command), retries=len(kinds) - 1, **(fields or {}))
    for kind in kinds[:-1]:
        worker.end(worker.next(), kind, reason="exit code 1")
    worker.end(worker.next(), kinds[-1], **told)
    client.wait(task, DEADLINE)
    return task


def refused(call, *arguments, **fields) -> FarmRefused:
    with pytest.raises(FarmRefused) as caught:
        call(*arguments, **fields)
    return caught.value


def test_a_result_has_the_requirements_fields(client, worker):
    """A second after the task has ended it is in the list; its attempts that failed, too."""
    task = done(
        client, worker, OutcomeKind.FAILED, OutcomeKind.COMPLETED, command=("pytest", "-x"),
        fields={"name": "unit", "project": "vision"}, metrics={"loss": 0.5, "odd": float("nan")}, counts={"passed": 3},
        cpu_seconds=1.5, peak_memory=4096, log_bytes=3, tail="ok\n",
    )  # fmt: skip
    (told,) = client.results()
    assert list(told) == FIELDS
    assert {name: told[name] for name in FIELDS[:-1]} == {
        "result_id": task,
        "task_id": task,
        "worker_id": "w",
        "test_id": "unit",
        "timestamp": "1970-01-01T00:00:02Z",
        "metrics": {"loss": 0.5, "odd": None},
        "status": "success",
        "execution_time": 1.0,
        "hardware_metrics": {"cpu_seconds": 1.5, "peak_memory": 4096.0},
        "environment": {},
        "raw_data": {"artifacts": {}, "log_bytes": 3, "tail": "ok\n", "returned": None},
    }
    about = told["metadata"]
    assert (about["project"], about["command"], about["counts"]) == ("vision", ["pytest", "-x"], {"passed": 3})
    assert [(attempt["number"], attempt["reason"]) for attempt in about["failed_attempts"]] == [(1, "exit code 1")]
    assert client.connection.ask("GET", f"/api/results/{task}") == told


def test_filters_and_pages(client, worker):
    tasks = [
        done(client, worker, OutcomeKind.COMPLETED, fields={"project": "a"}),
        done(client, worker, OutcomeKind.FAILED, fields={"plan": "p"}),
        done(client, worker, OutcomeKind.TIMEOUT, fields={"name": "n"}, counts={"passed": 1}),
    ]

    def asked(**filters):
        return [tasks.index(told["task_id"]) for told in client.results(**filters)]

    assert asked() == asked(limit=1) == asked(limit=2) == asked(worker_id="w") == [2, 1, 0]
    assert asked(status="success") == asked(project="a") == asked(outcome="completed") == [0]
    assert asked(status="failure") == asked(plan="p") == [1]
    assert asked(status="partial") == asked(name="n") == asked(task_id=tasks[2]) == [2]
    assert asked(since="1970-01-01T00:00:02Z", until="1970-01-01T01:00:03+01:00") == [2, 1, 0]
    assert asked(until="1970-01-01T00:00:02") == asked(project="'") == []


def test_what_is_refused(client):
    assert refused(client.connection.ask, "GET", "/api/results/nobody").status == 404
    for path in ("?status=good", "?limit=0", "?since=yesterday", "?outcome=x"):
        refusal = refused(client.connection.ask, "GET", f"/api/results{path}")
        assert refusal.status == 422, path
    assert "since: 'yesterday' is no time; expected ISO 8601" in str(
        refused(client.connection.ask, "GET", "/api/results?since=yesterday")
    )
    for sql, reason in (
        ("DROP TABLE farm.results", "DROP"),
        ("FROM read_text('/etc/hostname')", "disabled"),
        ("x", "read"),
    ):
        refusal = refused(client.query, sql)
        assert (refusal.status, reason in str(refusal)) == (422, True), str(refusal)
    assert refused(client.connection.ask, "POST", "/api/results/query", {"sq": "x"}).status == 422


def test_a_question_on_the_command_line(client, worker, coordinator, capsys):
    """In each format, by whoever has the token."""
    done(client, worker, OutcomeKind.COMPLETED, fields={"name": "one"}, metrics={"loss": 0.5})
    done(client, worker, OutcomeKind.FAILED, fields={"name": "two"})
    sql = "SELECT name, outcome, ended, metrics['loss'] AS loss FROM farm.results ORDER BY task"

    def told(*options: str) -> str:
        where = ["--farm", coordinator.url, "--token-file", str(coordinator.token_file)]
        assert main(["farm", "results", "query", sql, *options, *where]) == 0
        return capsys.readouterr().out

    assert told() == (
        "name  outcome    ended                 loss\n"
        "one   completed  1970-01-01T00:00:02Z  0.5\n"
        "two   failed     1970-01-01T00:00:02Z\n"
    )
    assert told("--format", "csv").splitlines()[1:] == [
        "one,completed,1970-01-01T00:00:02Z,0.5", "two,failed,1970-01-01T00:00:02Z,"
    ]  # fmt: skip
    assert told("--format", "markdown").splitlines()[2] == "| one | completed | 1970-01-01T00:00:02Z | 0.5 |"
    assert json.loads(told("--json"))[1] == {
        "name": "two", "outcome": "failed", "ended": "1970-01-01T00:00:02Z", "loss": None
    }  # fmt: skip


def test_a_task_that_only_the_archive_knows(memory, tmp_path):
    """etcd has forgotten it, and in the end its tombstone: after a restart it is answered as before, and comes before others."""
    first = CoordinatorInThread(memory, tmp_path)
    worker = PlayedWorker((first.url,), read_token(first.token_file))
    try:
        with first.client() as client:
            task = done(client, worker, OutcomeKind.COMPLETED, metrics={"loss": 0.5})
            before = client.task(task).raw
            assert [told["task_id"] for told in client.results()] == [task]
    finally:
        worker.close()
        first.stop()
    keys = FarmKeys("f")
    tombstone = Tombstone(outcome=TaskOutcome.COMPLETED, archived=1.0)
    memory.put(keys.key(Kind.TOMBSTONE, task), encode(tombstone))
    memory.delete(keys.key(Kind.DONE, task))
    again = CoordinatorInThread(memory, tmp_path)
    try:
        with again.client() as other:
            assert other.task(task).raw == before
            memory.delete(keys.key(Kind.TOMBSTONE, task))
            assert other.task(task).raw == before
            later = other.submit(["y"], after=[task])
            poll_until(
                lambda: other.task(later).status == "pending", DEADLINE, "the task that it comes after to be found"
            )
            assert refused(other.task, later[:-1] + "x").status == 404
    finally:
        again.stop()


def test_the_farms_status_tells_how_results_are(client):
    told = client.status()["results"]
    assert told["health"] == "healthy"
    assert told["archive"]["reason"] in ("archives", "another coordinator archives")
