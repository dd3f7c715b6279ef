"""ElasticCallback in restart mode under real torchrun: whoever goes or comes, every sample is trained exactly once."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.elastic.programs.restart_script import NUM_SAMPLES
from support.elastic.restart_run import RestartRun, kill

pytestmark = pytest.mark.process

C10D = ("--rdzv-backend=c10d", "--rdzv-conf=last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=60")


@pytest.fixture
def run(tmp_path: Path, fork_server: Any) -> Iterator[Callable[..., RestartRun]]:
    """Make a run."""
    made: list[RestartRun] = []

    def make(**options: Any) -> RestartRun:
        made.append(RestartRun(tmp_path, f"restart-{os.getpid()}", server=fork_server, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def free_port() -> int:
    """torchrun's static rendezvous wants a number: one that the kernel gives to nobody who asks for any."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            port = random.randrange(15_000, 30_000)
            probe.bind(("127.0.0.1", port))
            return port


def test_kill_worker_under_c10d(run: Any) -> None:
    """kill -9 of local rank 0, which writes the snapshots: its sibling writes the last one, no step is lost."""
    run = run(rendezvous=(*C10D, "--rdzv-endpoint=127.0.0.1:0", "--rdzv-id=killed"))
    node = run.start("a", nnodes="1:1", num_workers=2)
    pid = int(node.expect(r"worker (\d+) rank 0 of 2")[1])
    run.wait_for_steps(7)
    kill(pid)
    node.expect("goes on at step")
    done = run.finish()
    run.check(done)
    assert len(done) == 2
    assert run.lost_steps() == [0]


def test_requeued_under_static(run: Any) -> None:
    """SIGTERM to the agent, then the same command again, now with two workers: on at the exact sample."""
    run = run(rendezvous=("--rdzv-id=requeued", f"--master-port={free_port()}"))
    node = run.start("a", nnodes="1")
    run.worker(node, 1)
    run.wait_for_steps(7)
    node.signal(signal.SIGTERM)
    node.wait()
    again = run.start("a", nnodes="1", num_workers=2)
    again.expect("goes on at step")
    run.nodes.remove(node)
    done = run.finish()
    run.check(done)
    assert len(done) == 2
    assert run.lost_steps() == [0]


def test_join_and_kill_under_etcd(run: Any, etcd: Any) -> None:
    """A node joins and gets the state from the first; then it is killed with all its memory: the other goes on."""
    run = run(endpoint=etcd.endpoint)
    first = run.start("a")
    run.worker(first, 1)
    run.wait_for_steps(7)
    second = run.start("b")
    pid = run.worker(second, 2)
    run.worker(first, 2)
    run.wait_for_steps(7)
    second.signal(signal.SIGKILL)
    kill(pid)
    run.worker(first, 1)
    done = run.finish()
    run.check(done, lost_nodes=("b",))
    assert run.lost_steps() == [0, 0]


def test_a_node_joins_after_training(run: Any, etcd: Any, tmp_path: Path) -> None:
    """It comes while the other exports: the workers are started anew, `fit` trains nothing, both end with exit code 0."""
    run = run(endpoint=etcd.endpoint)
    (tmp_path / "hold").touch()
    run.go_fast()
    first = run.start("a")
    run.worker(first, 1)
    first.expect("done rank 0 of 1")
    second = run.start("b")
    for node in (first, second):
        run.worker(node, 2)
        node.expect(r"done rank \d of 2")
    (tmp_path / "hold").unlink()
    done = run.finish()
    run.check(done)
    assert len(done) == 3
    assert run.lives_that_drew() == {1}
    assert "has finished, with" in first.output


def test_a_worker_dies_in_a_test(run: Any, etcd: Any, tmp_path: Path) -> None:
    """`kill -9` in `trainer.test`: all are started anew, take the final state, and test every sample in the new world."""
    run = run(endpoint=etcd.endpoint)
    for name in ("hold", "tests"):
        (tmp_path / name).touch()
    run.go_fast()
    node = run.start("a", num_workers=2)
    pid = int(node.expect(r"tests (\d+)")[1])
    node.expect("tests")
    kill(pid)
    (tmp_path / "hold").unlink()
    node.expect(r"tested \d+ samples in a world of 2")
    done = run.finish()
    run.check(done)
    assert run.lives_that_drew() == {1}
    assert node.output.count(f"tested {NUM_SAMPLES} samples in a world of 2") == 2
    assert "tested" not in node.output.replace(f"tested {NUM_SAMPLES} samples", "")


@pytest.mark.chaos
def test_join_and_kill_of_everybody_under_c10d(run: Any) -> None:
    """A second agent joins: no step lost. Then all workers of both are killed at once: at most `every` steps are."""
    endpoint = f"--rdzv-endpoint=127.0.0.1:{free_port()}"
    run = run(rendezvous=(*C10D, endpoint, "--rdzv-id=joined"))
    first = run.start("a")
    run.worker(first, 1)
    run.wait_for_steps(7)
    second = run.start("b")
    pids = [run.worker(node, 2) for node in (first, second)]
    run.wait_for_steps(12)
    for pid in pids:
        kill(pid)
    run.worker(first, 2)
    done = run.finish()
    run.check(done)
    planned, unplanned = run.lost_steps()
    assert planned == 0
    assert unplanned <= run.every + 1
