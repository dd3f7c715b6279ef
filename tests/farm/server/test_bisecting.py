"""`dtf farm bisect --on-farm` against a real coordinator: failures with played workers, timings with a real one."""

from __future__ import annotations

import contextlib
import sys

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.clock import poll_until
from dtf_lightning.farm.inquiries.tests_on_farm import GOOD
from dtf_lightning.farm.sources import pack_commit
from dtf_lightning.farm.tokens import read_token
from support.farm.playing import Players
from support.farm.repository import Repository
from support.farm.server import DEADLINE, WorkerInThread

pytestmark = pytest.mark.process


@pytest.fixture
def repository(tmp_path, monkeypatch):
    made = Repository(tmp_path / "repository")
    monkeypatch.chdir(made.folder)
    return made


@pytest.fixture
def bisect(coordinator, capsys):
    def ask(*words):
        place = ["--farm", coordinator.url, "--token-file", str(coordinator.token_file)]
        code = main(["farm", "bisect", "--on-farm", *place, *words])
        told = capsys.readouterr()
        return code, told.out + told.err

    return ask


def test_failures(coordinator, repository, bisect):
    """Several commits at once, by their files; one that cannot be built, and one worker's loss, tell nothing."""
    digests = repository.row([str(at) for at in range(8)])
    positions = {pack_commit(repository.folder, digest).digest: at for at, digest in enumerate(digests)}
    culprit, broken = 5, 3

    def ends(worker, asked):
        at = positions[asked.source]
        assert asked.command[-2:] == ("sh", "run.sh")
        assert asked.command[4] == "make"
        return 125 if at == broken else at >= culprit

    with contextlib.closing(Players(coordinator, ends)) as players:
        code, told = bisect("--flaky", "--setup", "make", digests[0], digests[-1], "--", "sh", "run.sh")
    assert code == 0, told
    assert told.startswith(f"introduced by {digests[culprit][:10]} (commit {culprit}) (9"), told
    assert len({asked.plan for _, asked in players.ran}) == 1
    assert {worker for worker, _ in players.ran} == {"a", "b"}


def test_timings(client, coordinator, repository, bisect, tmp_path, monkeypatch):
    """Each test compares a commit with the good one, from two folders of one task, which has the worker for itself."""
    dtf = tmp_path / "bin" / "dtf"
    dtf.parent.mkdir()
    dtf.write_text(f'#!/bin/sh\nexec {sys.executable} -m dtf_lightning "$@"\n')
    dtf.chmod(0o755)
    monkeypatch.setenv("PATH", str(dtf.parent), prepend=":")
    digests = repository.row(
        [f"""printf '{{"latency": {time}}}\\n' > $DTF_FARM_RESULTS/t.jsonl; test -e built""" for time in (1000, 1100)]
    )
    worker = WorkerInThread(coordinator.url, read_token(coordinator.token_file), tmp_path / "w", "w")
    try:
        poll_until(client.workers, DEADLINE, "the worker to be there")
        words = ["--metric", "latency:ms", "--setup", "touch built", "--runs", "3", "--parallel", "1", "--sure", "80"]
        code, told = bisect(*words, digests[0], digests[1], "--", "sh", "run.sh")
    finally:
        worker.close()
    assert code == 0, told
    assert told.startswith(f"introduced by {digests[1][:10]} (commit 1) ("), told
    tasks = list(client.tasks())
    assert {task.raw["name"] for task in tasks} == {f"bisect: {digest[:10]}" for digest in digests}
    assert GOOD == ".dtf-good"
