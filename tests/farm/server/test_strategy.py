"""The strategy that a coordinator is started with is its leader's."""

from __future__ import annotations

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.farm.tokens import read_token
from support.farm.server import CoordinatorInThread, PlayedWorker


@pytest.mark.process
@pytest.mark.parametrize(("strategy", "num_used"), [("fair_share", 1), ("least_loaded", 2)])
def test_where_tasks_go(memory, tmp_path, strategy, num_used):
    """Two small tasks fill one worker up, or spread over both."""
    coordinator = CoordinatorInThread(memory, tmp_path, settings={"load_balancer.strategy": strategy})
    token = read_token(coordinator.token_file)
    workers = [PlayedWorker((coordinator.url,), token, name, session=name, cpu=4.0) for name in ("a", "b")]
    try:
        for worker in workers:
            worker.wait_until_welcome()
        with coordinator.client() as client:
            tasks = [client.submit(["x"]) for _ in range(2)]
            used = {client.next_attempt(task, 0).raw["worker_id"] for task in tasks}
        assert len(used) == num_used
    finally:
        for worker in workers:
            worker.close()
        coordinator.stop()


@pytest.mark.parametrize("command", [["up"], ["coordinator", "--folder", "f", "--token-file", "t"]])
def test_an_unknown_one(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["farm", *command, "--strategy", "fairest"]) == 2
    assert "no scheduling strategy is called 'fairest'; expected one of cheapest, fair_share" in capsys.readouterr().err
