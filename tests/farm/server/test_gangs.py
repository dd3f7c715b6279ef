"""Gangs: several workers make one attempt, which has one result."""

from __future__ import annotations

import io
import time

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.clock import poll_until
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.cli.streams.logs import show_together
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.tokens import read_token
from support.farm.server import DEADLINE, CoordinatorInThread, PlayedWorker

pytestmark = pytest.mark.process


@pytest.fixture
def pair(coordinator):
    workers = [
        PlayedWorker((coordinator.url,), read_token(coordinator.token_file), name, session=name) for name in ("a", "b")
    ]
    for worker in workers:
        worker.wait_until_welcome()
    yield workers
    for worker in workers:
        worker.close()


def by_rank(pair):
    """The workers of an attempt by rank, with what they are told."""
    told = [(worker.next(), worker) for worker in pair]
    return sorted(told, key=lambda one: one[0].rank)


def leftovers(memory: MemoryStore):
    keys = FarmKeys("f")
    kinds = (Kind.TASK, Kind.ATTEMPT, Kind.MEETING, Kind.MEMBER)
    return [kv.key for kind in kinds for kv in memory.range(keys.folder(kind)).kvs]


def test_one_result_of_all_members(memory, client, pair):
    task = client.submit(["x"], gang=2)
    (first, zero), (second, one) = by_rank(pair)
    assert first.revision == second.revision
    assert [(run.rank, run.world, run.host, run.port) for run in (first, second)] == [
        (0, 2, "here", 4242),
        (1, 2, "here", 4242),
    ]
    assert client.task(task).raw["metadata"]["workers"] == [zero.name, one.name]
    one.end(second, metrics={"loss": 0.5}, cpu_seconds=2.0)
    assert one.acknowledgements.get(timeout=DEADLINE).recorded
    one.reconnect()  # its part is over: it is not told to run it again
    one.wait_until_welcome()
    assert not client.task(task).done
    zero.end(first, cpu_seconds=1.0)
    info = client.wait(task, DEADLINE)
    assert (info.status, info.exit_code, info.gang) == ("completed", 0, 2)
    assert info.raw["results"]["metrics"]["cpu_seconds"] == 3.0
    assert one.orders.empty()
    assert leftovers(memory) == []


def test_one_that_fails_ends_the_others(memory, client, pair):
    task = client.submit(["x"], gang=2, retries=1)
    (first, zero), (second, one) = by_rank(pair)
    one.end(second, OutcomeKind.FAILED, reason="exit code 7", exit_code=7)
    called_off = zero.called_off.get(timeout=DEADLINE)
    assert (called_off.revision, called_off.called_off) == (first.revision, "member 1 of its gang ended as failed")
    assert not client.task(task).done
    zero.end(first, OutcomeKind.CANCELLED, exit_code=None, signal=15)
    (again, zero), (other, one) = by_rank(pair)  # with its one retry, once more as a whole
    assert (again.number, other.number) == (2, 2)
    assert again.revision > first.revision
    zero.end(again, OutcomeKind.FAILED, reason="exit code 3", exit_code=3)
    one.called_off.get(timeout=DEADLINE)
    one.end(other, OutcomeKind.FAILED, reason="exit code 9", exit_code=9)
    info = client.wait(task, DEADLINE)
    assert (info.status, info.exit_code) == ("failed", 9)
    assert info.reason == f"member 0 of 2, on {zero.name}: exit code 3"
    assert leftovers(memory) == []


@pytest.mark.parametrize("coordinator", [{"health_monitor.worker_grace": 0.2}], indirect=True, ids=["impatient"])
def test_a_lost_worker_takes_the_whole_attempt_back(memory, client, pair):
    task = client.submit(["x"], gang=2)
    (first, zero), (_, one) = by_rank(pair)
    one.hold_off()
    cancelled = zero.cancelled.get(timeout=DEADLINE)
    assert (cancelled.task, cancelled.revision) == (task, first.revision)
    poll_until(lambda: "only 1 of the 2 workers" in (client.task(task).reason or ""), DEADLINE, "the leader to say why")
    one.come_back()
    (again, zero), (other, one) = by_rank(pair)
    assert (again.number, again.revision > first.revision) == (2, True)
    zero.end(first)  # of the attempt that does not count
    assert not zero.acknowledgements.get(timeout=DEADLINE).recorded
    for worker, order in ((zero, again), (one, other)):
        worker.end(order)
    assert client.wait(task, DEADLINE).raw["metadata"]["attempt"] == 2
    assert leftovers(memory) == []


def test_cancelled_with_one_member_done(memory, client, pair):
    task = client.submit(["x"], gang=2)
    (_, zero), (second, one) = by_rank(pair)
    one.end(second)
    one.acknowledgements.get(timeout=DEADLINE)
    assert client.cancel(task) == "cancelled"
    zero.cancelled.get(timeout=DEADLINE)
    assert leftovers(memory) == []


def test_over_two_coordinators(memory, coordinator, client, tmp_path):
    """Members are held by different coordinators, and the one that leads goes: the record alone joins them."""
    other = CoordinatorInThread(memory, tmp_path, name="c1")
    token = read_token(coordinator.token_file)
    pair = [PlayedWorker((url,), token, name, session=name) for url, name in ((coordinator.url, "a"), (other.url, "b"))]
    try:
        for worker in pair:
            worker.wait_until_welcome()
        task = client.submit(["x"], gang=2)
        (first, zero), (second, one) = by_rank(pair)
        held = {worker.name: worker for worker in pair}
        held["b"].end(second if one.name == "b" else first)
        held["b"].acknowledgements.get(timeout=DEADLINE)
        held["a"].end(first if zero.name == "a" else second)
        with other.client() as asks:
            assert asks.wait(task, DEADLINE).status == "completed"
    finally:
        for worker in pair:
            worker.close()
        other.stop()


def test_output_of_each_member(client, pair):
    task = client.submit(["x"], gang=2)
    (first, zero), (second, one) = by_rank(pair)
    path = f"/api/tasks/{task}/logs"
    one.connection.send("POST", path, b"from one\nunfinished", revision=second.revision, offset=0, rank=1)
    zero.write(first, 0, b"from zero\n")
    for worker, order in ((zero, first), (one, second)):
        worker.end(order)
    client.wait(task, DEADLINE)
    assert b"".join(client.logs(task, rank=1)) == b"from one\nunfinished"
    out = io.BytesIO()
    show_together([client.logs(task, rank=rank) for rank in range(2)], out)
    assert sorted(out.getvalue().splitlines()) == [b"[0] from zero", b"[1] from one", b"[1] unfinished"]


GPU = {"amounts": {"gpu": 1}}


def test_a_gang_that_is_too_large(client):
    with pytest.raises(FarmRefused, match="less than or equal to 64"):
        client.submit(["x"], gang=65)


def test_too_few_workers(client, worker):
    """Accepted with a warning that says so, or refused where that is asked for."""
    fields = {"command": ["x"], "gang": 2}
    (told,) = client.submit_all([{"task_id": new_task_id(time.time()), **fields}])
    assert told["warning"] == "only 1 of the 1 workers can do it, and it needs 2 at once"
    with pytest.raises(FarmRefused, match="only 1 of the 1 workers can do it, and it needs 2 at once"):
        client.submit_all([{"task_id": new_task_id(time.time()), **fields}], strict=True)
    with pytest.raises(FarmRefused, match=r"none of the 1 workers can do it; the nearest lacks 1 x gpu \(it has 0\)"):
        client.submit_all([{"task_id": new_task_id(time.time()), "command": ["x"], "needs": [GPU]}], strict=True)
    assert len(list(client.tasks())) == 1


def test_strict_by_the_command(coordinator, client, worker, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text("tasks:\n  a: {run: x}\n  b: {run: x, needs: {gpu: 1}}\n")
    where = ["--farm", coordinator.url, "--token-file", str(coordinator.token_file)]
    assert main(["farm", "submit", *where, "--strict", "--needs", "gpu=1", "--", "x"]) == 2
    assert main(["farm", "run", *where, "plan.yaml", "--strict"]) == 2
    assert "task b: none of the 1 workers can do it; the nearest lacks 1 x gpu (it has 0)" in capsys.readouterr().err
    assert list(client.tasks()) == []


def test_a_gang_waits_and_says_for_what(client, worker):
    task = client.submit(["x"], gang=2)
    reason = poll_until(lambda: client.task(task).reason, DEADLINE, "the leader to say why")
    assert "2 workers at once" in reason
