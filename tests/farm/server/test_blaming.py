"""`dtf farm blame` against a real coordinator, with workers whose attempts the test plays by what is wrong in its world."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.clock import poll_until
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.inquiries.retracting import retract
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.sources import Source, pack, pack_commit
from dtf_lightning.farm.tokens import read_token
from support.farm.playing import Players
from support.farm.server import DEADLINE, WorkerInThread

pytestmark = pytest.mark.process

GOOD, BAD = "1" * 64, "2" * 64


@pytest.fixture
def play(coordinator):
    with contextlib.ExitStack() as stack:

        def begin(fails, **options):
            players = Players(coordinator, fails, **options)
            stack.callback(players.close)
            return players

        yield begin


@pytest.fixture
def run(client):
    """Runs the test `t` with this code, and returns its task."""
    sources = {digest: client.send_source(pack_of(digest)) for digest in (GOOD, BAD)}

    def run(digest, **fields):
        task = client.submit(["check"], name="t", source=sources[digest], **fields)
        client.wait(task, DEADLINE)
        return task

    run.sources = sources
    return run


def pack_of(text):
    import hashlib

    data = text.encode()
    return Source(hashlib.sha256(data).hexdigest(), data, 1, "")


@pytest.fixture
def blame(coordinator, capsys):
    def ask(task, *options):
        place = ["--farm", coordinator.url, "--token-file", str(coordinator.token_file)]
        code = main(["farm", "blame", task, *options, *place])
        told = capsys.readouterr()
        return code, told.out + told.err

    return ask


def test_a_regression(client, play, run, blame):
    """The last run that passed is the base; its code is run where the candidate's fails. Reruns stand for nothing else."""
    bad = run.sources[BAD]
    players = play(lambda worker, asked: asked.source == bad)
    good = run(GOOD, environment={"A": "1"})
    failed = run(BAD, environment={"A": "1"}, plan="p", retries=0, key="k")
    code, told = blame(failed)
    assert code == 1, told
    assert "the candidate's code (9" in told
    assert "the base" in told
    assert client.plan("p")["total"] == 1, "a rerun is no part of the plan"
    reruns = [asked for _, asked in players.ran[2:]]
    assert {asked.name for asked in reruns} == {"blame: t"}
    assert {(asked.plan, asked.key, asked.retry_of) for asked in reruns} == {("", "", "")}
    assert {asked.environment["A"] for asked in reruns} == {"1"}
    past = client.connection.ask("GET", f"/api/tasks/{failed}/past")
    assert (past["base"]["task_id"], past["base"]["same_code"], past["passed"]) == (good, False, 1)


def test_a_worker_with_a_broken_library(client, play, run, blame):
    """What fails on one worker only, whatever code it runs."""
    play(lambda worker, asked: worker == sick)
    sick = ""
    run(GOOD)
    sick = client.task(failing := run(GOOD)).raw["worker_id"]
    failed = client.connection.ask(
        "POST",
        f"/api/tasks/{failing}/rerun",
        {"task_id": (task := new_task_id(time.time())), "avoid": list({"a", "b"} - {sick})},
    )
    assert failed["task_id"] == task
    assert client.wait(task, DEADLINE).status == "failed"
    code, told = blame(task, "--json")
    shown = json.loads(told)
    assert (code, shown["cause"], shown["worker"]) == (0, "worker", sick), told
    assert {one["worker_id"] for one in shown["reruns"]} == {"a", "b"}
    assert not any(one["metadata"]["cordoned"] for one in client.workers()), "nothing is done that nobody has asked for"


def test_what_failed_on_a_sick_worker_runs_again_elsewhere(client, play, run, blame):
    """With `--act`: it is cordoned, and each task that failed there comes back once, also if it is asked for twice."""
    sick = []
    play(lambda worker, asked: worker in sick and asked.name != "sound")
    run(GOOD)
    client.change_worker("b", "cordon")
    sick.append("a")
    failed, other = run(BAD), run(BAD, environment={"OTHER": "1"})
    sound = client.submit(["x"], name="sound")
    assert client.wait(sound, DEADLINE).status == "completed"
    client.change_worker("b", "uncordon")
    code, told = blame(failed, "--act")
    assert code == 0, told
    assert "a is cordoned; 2 tasks that failed there run again elsewhere" in told
    again = {
        task.raw["metadata"]["retry_of"]: task.task_id for task in client.tasks() if task.raw["metadata"]["retry_of"]
    }
    assert again.keys() == {failed, other}
    for task in again.values():
        ended = client.wait(task, DEADLINE)
        assert (ended.status, ended.raw["worker_id"]) == ("completed", "b")
    assert {one["worker_id"] for one in client.workers() if one["metadata"]["cordoned"]} == {"a"}
    assert set(retract(client, "a", 0.0, [failed]).again) == set(again.items())


def test_on_real_workers(client, coordinator, blame, tmp_path):
    """One of them lacks what the command needs: it is blamed, by reruns on it and on the other one."""
    token = read_token(coordinator.token_file)
    workers = [WorkerInThread(coordinator.url, token, tmp_path / name, name) for name in ("sound", "sick")]
    try:
        command = ["sh", "-c", "case $PWD in */sick/*) echo cannot load lib; exit 1;; esac"]
        poll_until(lambda: len(client.workers()) == 2, DEADLINE, "both workers to be there")
        client.change_worker("sick", "cordon")
        assert client.wait(client.submit(command, name="t"), DEADLINE).status == "completed"
        client.change_worker("sick", "uncordon")
        client.change_worker("sound", "cordon")
        failed = client.submit(command, name="t")
        assert client.wait(failed, DEADLINE).status == "failed"
        client.change_worker("sound", "uncordon")
        code, told = blame(failed)
    finally:
        for worker in workers:
            worker.close()
    assert code == 0, told
    assert told.startswith("t on sick: the worker on which it failed (9"), told
    assert "the code lies on the workers, so that it cannot be exchanged" in told


def test_a_flake(play, run, blame):
    """It fails once and then never: with its rate, and its interval."""
    fails = iter([False, True])
    play(lambda worker, asked: next(fails, False))
    run(GOOD)
    code, told = blame(run(BAD))
    assert code == 0, told
    assert "a flaky test (9" in told
    assert "it failed in 0 of " in told
    assert "a rate between 0 and " in told
    assert "to let it fail while it is mended: dtf farm quarantine add t --owner NAME" in told


def test_a_changed_variable(play, run, blame):
    play(lambda worker, asked: asked.environment.get("MODE") == "fast")
    run(GOOD, environment={"MODE": "slow"})
    code, told = blame(run(BAD, environment={"MODE": "fast"}))
    assert code == 0, told
    assert "the environment, which has changed since the base passed (9" in told
    assert "with the variables of the last good run it passes: MODE" in told


def test_code_that_passed_before_is_not_blamed(play, run, blame):
    fails = iter([False, True])
    players = play(lambda worker, asked: next(fails, True))
    run(BAD)
    code, told = blame(run(BAD))
    assert code == 0, told
    assert "the environment" in told
    assert "the same code passed as task" in told
    assert {asked.source for _, asked in players.ran} == {run.sources[BAD]}


def test_a_commit_as_the_base(client, play, blame, tmp_path, monkeypatch):
    """Its files travel to the workers, also those that are marked `export-ignore`; here nothing changes."""
    repository = tmp_path / "repository"
    repository.mkdir()

    def git(*words):
        subprocess.run(
            ["git", "-c", "user.name=n", "-c", "user.email=e", *words], cwd=repository, check=True, capture_output=True
        )

    git("init", "-q")
    for text in ("good", "bad"):
        (repository / ".gitattributes").write_text("code.txt export-ignore\n")
        (repository / "code.txt").write_text(text)
        git("add", "--all")
        git("commit", "-q", "-m", text)
    monkeypatch.chdir(repository)
    bad = pack(repository)
    base = pack_commit(repository, "HEAD~1")
    assert base.num_files == 2
    assert pack_commit(repository, "HEAD").digest == bad.digest
    assert (repository / "code.txt").read_text() == "bad"
    play(lambda worker, asked: asked.source != base.digest)
    task = client.submit(["check"], source=client.send_source(bad))
    client.wait(task, DEADLINE)
    code, told = blame(task, "--base", "HEAD~1")
    assert (code, "the candidate's code (9" in told) == (1, True), told
    code, told = blame(task, "--base", "nowhere")
    assert (code, "'nowhere' is no commit, branch or tag" in told) == (2, True), told


def test_what_cannot_be_blamed(client, play, run, blame):
    play(lambda worker, asked: asked.source == run.sources[BAD])
    passed = run(GOOD)
    code, told = blame(passed)
    assert (code, "no attempt at task" in told) == (2, True), told
    code, told = blame(run(BAD), "--budget", "-1")
    assert (code, "--budget -1: expected 0 to 100 reruns" in told) == (2, True)
    with pytest.raises(FarmRefused, match="knows no task"):
        client.connection.ask("GET", f"/api/tasks/{new_task_id(time.time())}/past")
    body = {"task_id": new_task_id(time.time()), "code_of": passed, "source": GOOD}
    with pytest.raises(FarmRefused, match="not of both"):
        client.connection.ask("POST", f"/api/tasks/{passed}/rerun", body)


def test_code_of_another_project_is_not_taken(client, play, run):
    """A token that is limited to projects could read it by such a rerun."""
    play(lambda worker, asked: False)
    client.set_project("other")
    mine, others = run(GOOD), run(GOOD, project="other")
    for field in ("code_of", "variables_of"):
        body = {"task_id": new_task_id(time.time()), field: others}
        with pytest.raises(FarmRefused, match="is of another project"):
            client.connection.ask("POST", f"/api/tasks/{mine}/rerun", body)
