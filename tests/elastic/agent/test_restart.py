"""Restart mode under real torchrun: stock scripts, which know nothing of this package, survive every fault."""

from __future__ import annotations

import importlib.util
import os
import re
import select
import shlex
import signal
import sys
from pathlib import Path

import psutil
import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.run.keys import RunKeys, RunView
from dtf_lightning.etcd import connect
from support.elastic.torchrun import PATIENCE, Torchrun

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[3]
STOCK = str(ROOT / "tests/support/elastic/programs/stock_ddp.py")
TRAINER = str(ROOT / "tests/support/elastic/programs/stock_trainer.py")
FSDP = str(ROOT / "tests/support/elastic/programs/stock_fsdp.py")
CONF = "initial_window=0.3"
"""mode=auto, as users have it: it chooses restart for these scripts."""


@pytest.fixture
def end_file(tmp_path):
    return tmp_path / "end"


@pytest.fixture
def start(etcd, run_id, end_file, fork_server):
    """Starts nodes of one run, by forking (`test_torchrun.py` executes torchrun as a user's shell does)."""
    made: list[Torchrun] = []

    def start(script: str = STOCK, argument: str = "", *, conf: str = CONF, **options: object) -> Torchrun:
        options = {"server": fork_server, **options}
        made.append(Torchrun(etcd.endpoint, run_id, script, argument or str(end_file), conf=conf, **options))  # type: ignore[arg-type]
        return made[-1]

    yield start
    for node in made:
        node.__exit__()


def readme_command(endpoint: str, run_id: str, end_file: Path) -> list[str]:
    """The line of the README; only what a test must choose for itself is replaced: etcd's port, the id, the script."""
    [line] = re.findall(r"^torchrun .*mode=restart train\.py$", (ROOT / "README.md").read_text(), re.MULTILINE)
    words = shlex.split(line)
    words[words.index("--rdzv-endpoint=127.0.0.1:2379")] = f"--rdzv-endpoint={endpoint}"
    words[words.index("--rdzv-id=run8")] = f"--rdzv-id={run_id}"
    assert (words[0], words[-1]) == ("torchrun", "train.py")
    return [sys.executable, "-m", "torch.distributed.run", *words[1:-1], STOCK, str(end_file)]


def worker_of(node: Torchrun, place: str) -> int:
    """The pid of the node's worker, once it trains in this place."""
    pid = int(node.expect(rf"worker pid (\d+) rank {place}")[1])
    node.expect(f"trains: rank {place}")
    return pid


def children(pid: int) -> set[int]:
    return {child.pid for child in psutil.Process(pid).children()}


def two_spares(agent: int) -> set[int]:
    """The agent's spares, some of which are workers now, once there are two."""

    def two() -> set[int]:
        found = {pid for pid in children(agent) if "spare_process" in Path(f"/proc/{pid}/cmdline").read_text()}
        return found if len(found) == 2 else set()

    return poll_until(two, PATIENCE, "the second spare")


def is_gone(pid: int) -> None:
    """Waits for the end of a process that is not ours."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([pidfd], [], [], PATIENCE)[0], f"process {pid} lives on"
    finally:
        os.close(pidfd)


def test_join_leave_and_finish(start, etcd, run_id, end_file):
    """A node joins, another leaves on SIGTERM, the rest finish with equal weights; then the id can be used again."""
    first = start()
    first.expect("mode=restart: .* neither .*stock_ddp.py nor what it imports .* names dtf_lightning")
    worker_of(first, "0 of 1")
    second = start(command=readme_command(etcd.endpoint, run_id, end_file))
    worker_of(second, "1 of 2")
    worker_of(first, "0 of 2")
    first.signal(signal.SIGTERM)
    first.expect("SIGTERM: this node leaves")
    assert first.wait() == 0, first.output
    worker_of(second, "0 of 1")
    end_file.touch()
    second.expect("finished rank 0 of 1 same weights True")
    assert second.wait() == 0, second.output
    store = connect(etcd.endpoint, quiet=True)
    view = RunView(RunKeys(run_id))
    view.reset(store.range(view.keys.prefix))
    store.close()
    assert (dict(view.nodes), view.run.phase.value) == ({}, "finished")
    again = start(options=("--max-restarts=0",))
    again.expect("round 1: 1 node")
    assert again.wait() == 0, again.output


def test_kill_worker(start):
    """kill -9 of one of two workers: its node starts both anew, the other node too, without spending a restart of its own."""
    other = start(options=("--max-restarts=0",))
    worker_of(other, "0 of 1")
    victim = start(num_workers=2, options=("--max-restarts=1",))
    pid = worker_of(victim, "1 of 3")
    worker_of(other, "0 of 3")
    os.kill(pid, signal.SIGKILL)
    worker_of(other, "0 of 3")
    worker_of(victim, "[12] of 3")
    assert "SIGKILL" in victim.output


def test_kill_agent(start):
    """kill -9 of the agent with group rank 0, which hosts the store: no orphan, the other goes on at once."""
    first = start()
    worker_of(first, "0 of 1")
    second = start()
    worker_of(second, "1 of 2")
    pid = worker_of(first, "0 of 2")
    first.signal(signal.SIGKILL)
    is_gone(pid)
    worker_of(second, "0 of 1")
    assert "its agent's process is gone" in second.output


def test_kill_node(start):
    """kill -9 of worker and agent together, one of them being rank 0: the other goes on, and a new node joins it."""
    first = start()
    worker_of(first, "0 of 1")
    second = start()
    worker_of(second, "1 of 2")
    pid = worker_of(first, "0 of 2")
    first.signal(signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    worker_of(second, "0 of 1")
    third = start()
    worker_of(third, "1 of 2")


def test_fsdp(start, tmp_path):
    """A sharded model with checkpoints of its own: join, kill -9 of a worker, kill -9 of rank 0's agent; it never starts over."""
    first = start(FSDP, str(tmp_path))
    first.expect("trains: rank 0 of 1")
    second = start(FSDP, str(tmp_path), options=("--max-restarts=1",))
    joined = second.expect(r"worker pid (\d+) rank 1 of 2 from step (\d+)")
    second.expect("trains: rank 1 of 2")
    os.kill(int(joined[1]), signal.SIGKILL)
    again = second.expect(r"rank 1 of 2 from step (\d+)")
    second.expect("trains: rank 1 of 2")
    first.signal(signal.SIGKILL)
    alone = second.expect(r"rank 0 of 1 from step (\d+)")
    assert 0 < int(joined[2]) < int(again[1]) < int(alone[1])
    second.expect("trains: rank 0 of 1")


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="`make compatibility` installs it")
def test_hugging_face_trainer(start, tmp_path):
    """The real Trainer: a node joins, its worker is killed, the first agent is killed; it goes on from its checkpoints."""
    first = start(TRAINER, str(tmp_path))
    first.expect("trains: rank 0 of 1 from step 1")
    second = start(TRAINER, str(tmp_path), options=("--max-restarts=1",))
    joined = second.expect(r"worker pid (\d+) trains: rank 1 of 2 from step (\d+)")
    os.kill(int(joined[1]), signal.SIGKILL)
    again = second.expect(r"trains: rank 1 of 2 from step (\d+)")
    first.signal(signal.SIGKILL)
    alone = second.expect(r"trains: rank 0 of 1 from step (\d+)")
    assert 1 < int(joined[2]) < int(again[1]) < int(alone[1])


def test_silent_peer_is_noticed_while_workers_live(start, tmp_path):
    """A node dies whose workers do not talk to each other: the mesh tells, no collective has to fail."""
    script = tmp_path / "quiet.py"
    script.write_text(
        "import os, signal\nprint('rank', os.environ['RANK'], os.environ['WORLD_SIZE'], flush=True)\nsignal.pause()\n"
    )
    first = start(str(script))
    first.expect("rank 0 1")
    second = start(str(script))
    first.expect("rank 0 2")
    second.expect("rank 1 2")
    first.signal(signal.SIGKILL)
    second.expect("rank 0 1")


def test_worker_that_ignores_sigterm(start):
    """It is killed after stop_grace, and the log says so."""
    deaf = start(conf=f"{CONF},stop_grace=0.2", env={"IGNORE_SIGTERM": "1"})
    worker_of(deaf, "0 of 1")
    second = start()
    worker_of(second, "1 of 2")
    worker_of(deaf, "0 of 2")
    assert "ignored SIGTERM for 0.2 s: killed" in deaf.output


def test_crash_at_import(start):
    """A restart loop ends after max_consecutive_failures, with the user's traceback above the reason."""
    node = start(
        conf=f"{CONF},max_consecutive_failures=1", options=("--max-restarts=100",), env={"FAIL_AT_IMPORT": "1"}
    )
    assert node.wait() == 1
    users, ours = node.output.index("ValueError: the user's own mistake"), node.output.rindex("[dtf] ")
    assert users < ours
    assert "2 failures in a row" in node.output[ours:]
    assert "torch/distributed/launcher" not in node.output  # no traceback of the launcher's


def test_two_runs_with_one_id(start, tmp_path):
    """Another script, another --nnodes or live mode under the id of a run: refused by name, the run goes on."""
    node = start()
    worker_of(node, "0 of 1")
    other = tmp_path / "other.py"
    other.write_text("")
    refused = [start(str(other)), start(nnodes="1:2"), start(conf="mode=live")]
    codes = [each.wait() for each in refused]
    assert codes == [1, 1, 1]
    assert "the run trains 'stock_ddp.py', this node 'other.py'" in refused[0].output
    assert "the run has --nnodes=1:4, this node 1:2" in refused[1].output
    assert "is in mode=restart, this node in mode=live" in refused[2].output
    assert node.process.poll() is None


def test_slurm_warning_then_sigterm(start):
    """SIGUSR1 leaves gracefully, and the SIGTERM that follows it is not yet the second signal."""
    stays, leaves = start(), start()
    worker_of(leaves, "[01] of 2")
    leaves.signal(signal.SIGUSR1)
    leaves.signal(signal.SIGTERM)
    assert leaves.wait() == 0, leaves.output
    assert "SIGUSR1: this node leaves" in leaves.output
    worker_of(stays, "0 of 1")


def test_preemption_notice(start, tmp_path):
    """The cloud's notice is enough: the node leaves, the other goes on."""
    source = tmp_path / "my_notice.py"
    taken = tmp_path / "taken"
    source.write_text(
        "from pathlib import Path\nfrom dtf_lightning.elastic.agent.notice import Notice\n"
        f"def ask():\n    return Notice('spot notice', 20.0) if Path({str(taken)!r}).exists() else None\n"
    )
    stays = start()
    leaves = start(
        conf=f"{CONF},notice=my_notice:ask,notice_interval=0.1",
        env={"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"},
    )
    worker_of(leaves, "[01] of 2")
    taken.touch()
    assert leaves.wait() == 0, leaves.output
    stays.expect("leaves: spot notice")
    worker_of(stays, "0 of 1")


def test_warm(start):
    """warm=true: the killed worker's successor had imported before; kill -9 of the agent leaves no spare behind."""
    node = start(conf=f"{CONF},warm=true,warm_delay=0.05", options=("--max-restarts=1",))
    node.expect("1 spares are ready")
    pid = worker_of(node, "0 of 1")
    spares = two_spares(node.process.pid)  # the worker was one itself
    assert pid in spares
    os.kill(pid, signal.SIGKILL)
    successor = worker_of(node, "0 of 1")
    assert successor in spares - {pid}
    left = children(node.process.pid)
    node.signal(signal.SIGKILL)
    for each in left:
        is_gone(each)
