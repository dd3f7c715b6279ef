"""Whole runs: who is let in, the next run under the same id, etcd away, real torchrun, long random sequences."""

from __future__ import annotations

import os
import pickle
import random
import re
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from dtf_lightning.elastic.run.keys import RunKeys, RunView
from dtf_lightning.elastic.testkit.local_cluster import LocalCluster
from dtf_lightning.etcd import connect
from dtf_lightning.etcd.server.embedded import EmbeddedEtcd
from dtf_lightning.processes.freezing import freeze
from support.elastic.run import PATIENCE, ElasticRun, check_survivors
from support.elastic.training import Training

pytestmark = pytest.mark.process

OPEN_END = Training(until_stopped=True, batch_norm=False, callbacks=("ema",))
TESTS = Path(__file__).parents[2]


def test_other_model_is_refused(make_run):
    """A node with another hidden size: refused by the name of the first parameter that differs; the run goes on."""
    run = make_run(OPEN_END, min_nodes=2)
    run.start("a", "b")
    generation = run.wait_for_world(2)
    run.start("c", training=replace(OPEN_END, hidden=48))
    assert run.server.wait(run.nodes["c"].pid, PATIENCE) == 1
    assert "network.0.weight" in run.nodes["c"].log()
    assert "float32 (32, 16)' in the run and" in run.nodes["c"].log()
    run.stop()
    run.wait_until_over(failed=1)
    run.check(survivors=2)
    assert set(run.audit().resume_steps) == {generation}


def test_finished_id_is_free(make_run):
    """A run ends; the next under the same id starts at once, anew, although it trains another model."""
    first = make_run(Training(max_epochs=1))
    first.start("a")
    first.wait_until_over()
    second = make_run(Training(max_epochs=1, hidden=48), run_id=first.run_id, min_nodes=2)
    second.start("a", "b")
    second.wait_until_over()
    first.check(survivors=1, epochs=1)
    second.check(survivors=2, epochs=1)


def test_etcd_freezes(fork_server, tmp_path):
    """etcd is stopped in mid-run: training goes on; a worker dies, the rescale waits; etcd is back, it happens."""
    with EmbeddedEtcd() as etcd, connect(etcd.endpoint, quiet=True) as store:
        run = ElasticRun(fork_server, store, etcd.endpoint, tmp_path, OPEN_END, elastic={"min_nodes": 2})
        try:
            run.start("a", "b", "c")
            before = run.wait_for_world(3)
            freeze(etcd.pid)
            run.wait_for_steps(100)
            psutil.Process(run.nodes["b"].worker_pids()[0]).kill()
            assert run.server.wait(run.nodes["b"].pid, PATIENCE) == 1
            os.kill(etcd.pid, signal.SIGCONT)
            run.wait_for_world(2, after=before)
            run.wait_for_steps(20)
            run.stop()
            run.wait_until_over(failed=1)
            run.check(survivors=2)
        finally:
            os.kill(etcd.pid, signal.SIGCONT)
            run.close()


def _draws_by_generation(folder: Path, *, since: int) -> list[int]:
    """How many workers have drawn samples in each generation from `since` on."""
    workers: Counter[str] = Counter()
    for path in folder.glob("ledger/*.jsonl"):
        workers.update(set(re.findall(r'"kind":"draw","generation":(\d+)', path.read_text())))
    return [number for generation, number in workers.items() if int(generation) >= since]


def test_torchrun(etcd, fork_server, tmp_path):
    """Real torchrun, two nodes of two workers: one worker dies, its node comes back (--max-restarts); a node is killed."""
    training = Training(until_stopped=True, batch_norm=False)
    arguments = [str(tmp_path), pickle.dumps(training).hex()]
    cluster = LocalCluster(
        TESTS / "support/elastic/programs/train_script.py",
        arguments,
        folder=tmp_path / "logs",
        run_id=tmp_path.name,
        run_dir=tmp_path,
        endpoint=etcd.endpoint,
        nnodes="1:2",
        nproc_per_node=2,
        max_restarts=1,
        rdzv_conf={"mode": "live", "initial_window": "120", "max_wait": "120"},  # the callback is in another file
        variables={"PYTHONPATH": os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))},
        popen=fork_server.popen,
    )
    with cluster:
        cluster.start("a")
        cluster.start("b")
        cluster.wait_for_generation(1, PATIENCE)
        cluster.wait_for_step(5, PATIENCE)
        cluster.nodes["a"].kill_worker(1)
        cluster.wait_for_generation(3, PATIENCE)
        # Until all four have drawn in one generation: before that only those that have survived have the state.
        cluster.wait_until(lambda: 4 in _draws_by_generation(tmp_path, since=3), "four workers again", PATIENCE)
        leader = cluster.leader()
        survivor = next(node for node in cluster.nodes.values() if node is not leader)
        leader.kill()
        cluster.wait_for_generation(4, PATIENCE)
        (tmp_path / "stop").touch()
        assert survivor.wait(PATIENCE) == 0, survivor.output()
    check_survivors(tmp_path, training, survivors=2)


@pytest.mark.chaos
@pytest.mark.parametrize("data", ["map", "several"])
@pytest.mark.parametrize("seed", range(5))
def test_random_faults(make_run, seed, data):
    """Forty joins, leaves and deaths of workers, agents and nodes, in random order, at any time, one to five nodes.

    With one loader, and with two side by side. Newcomers have registered before the next fault, their workers still set
    themselves up: the only member that holds the state goes too. All of it is one history, in one ledger.
    """
    chance = random.Random(seed)
    training = replace(OPEN_END, data=data, snapshot_every=1)
    run = make_run(training, max_consecutive_failures=1000, failure_tolerance=1000)
    run.start("n0")
    alive, number = ["n0"], 1
    for _ in range(40):
        action = chance.choice(["join", "join", "leave", "worker", "agent", "node"])
        if action == "join" or len(alive) == 1:
            if len(alive) < 5:
                run.start(f"n{number}")
                run.wait_for(lambda view, name=f"n{number}": name in view.nodes, "its registration")
                alive.append(f"n{number}")
                number += 1
        else:
            node = run.nodes[alive.pop(chance.randrange(len(alive)))]
            pid = node.worker_pids()[0]
            if action == "leave":
                node.send(signal.SIGTERM)
            if action in ("agent", "node"):
                node.kill_agent()
            if action in ("worker", "node"):
                psutil.Process(pid).kill()
        if chance.random() < 0.7:
            run.wait_for_members(alive)
    run.wait_for_members(alive)
    run.stop()
    run.wait_until_over(failed=None)
    run.check(survivors=len(alive))
    with connect(run.endpoint, quiet=True) as store:
        view = RunView(RunKeys(run.run_id))
        view.reset(store.range(view.keys.prefix))
    assert max(run.audit().resume_steps) == view.generation.number, "one life: generations are numbered through"
