"""The handler under real torchrun: names, exit codes, signals, and the errors that users see."""

from __future__ import annotations

import os
import signal
import textwrap
import urllib.request

import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.run.keys import RunKeys, RunView
from dtf_lightning.etcd import connect
from dtf_lightning.processes.freezing import freeze
from support.elastic.torchrun import PATIENCE, Torchrun

pytestmark = pytest.mark.process


@pytest.fixture
def end_file(tmp_path):
    return tmp_path / "end"


@pytest.fixture
def start(etcd, run_id, end_file, fork_server):
    """Starts nodes of one run, by forking; `server=None` executes torchrun as a user's shell does."""
    made: list[Torchrun] = []

    def start(*script_arguments: str, **options: object) -> Torchrun:
        options = {"server": fork_server, **options}
        made.append(Torchrun(etcd.endpoint, run_id, *(script_arguments or ()), **options))  # type: ignore[arg-type]
        return made[-1]

    yield start
    for node in made:
        node.__exit__()


def worker(end_file, *arguments):
    from support.elastic.torchrun import WORKER

    return (str(WORKER), str(end_file), *arguments)


def test_train_join_and_finish(start, etcd, run_id, end_file, tmp_path):
    """Two workers train, a node joins, all finish: both torchruns exit with 0 and the agents' keys are gone.

    Beside it, the first node serves metrics on a port of its choice.
    """
    first = start(
        *worker(end_file),
        num_workers=2,
        server=None,
        conf=f"initial_window=0.5,metrics_port=0,traces=true,run_dir={tmp_path / 'run'}",
    )
    address = first.expect(r"metrics at (http://\S+)")[1]
    first.expect("generation 1 rank [01] of 2")
    second = start(*worker(end_file))
    second.expect("generation 2 rank 2 of 3")

    def metrics() -> str:
        return urllib.request.urlopen(address, timeout=PATIENCE).read().decode()

    poll_until(lambda: "dtf_world_size 3.0" in metrics(), PATIENCE, metrics)
    assert len(list((tmp_path / "run" / "metrics").glob("*.json"))) == 1
    end_file.touch()
    assert (first.wait(), second.wait()) == (0, 0), first.output + second.output
    store = connect(etcd.endpoint, quiet=True)
    view = RunView(RunKeys(run_id))
    view.reset(store.range(view.keys.prefix))
    store.close()
    assert (dict(view.nodes), view.leader, view.run.phase.value) == ({}, None, "finished")


@pytest.mark.parametrize("name", ["etcd-v2", "etcd-v3"])
def test_other_names(start, end_file, name):
    """torch's documented name for etcd, and the honest one, mean the same."""
    end_file.touch()
    node = start(*worker(end_file), options=(f"--rdzv-backend={name}",))
    assert node.wait() == 0, node.output
    assert "finished" in node.output


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_leaves_on_a_signal(start, end_file, number):
    """SIGTERM or Ctrl-C on one node: it leaves at a boundary and exits with 0, the other goes on."""
    stays, leaves = start(*worker(end_file)), start(*worker(end_file))
    stays.expect("generation [12] rank . of 2")
    leaves.expect("generation [12] rank . of 2")
    leaves.signal(number)
    leaves.expect(f"{number.name}: this node leaves")
    assert leaves.wait() == 0, leaves.output
    assert "left" in leaves.output
    stays.expect(r"generation \d rank 0 of 1")


def test_second_ctrl_c(start, end_file):
    """Twice Ctrl-C: the node stops at once, with an exit code that is not 0, and leaves no worker behind."""
    node = start(*worker(end_file))
    pid = int(node.expect(r"pid (\d+)")[1])
    node.expect("generation 1")
    freeze(pid)  # so that it cannot leave gracefully
    node.signal(signal.SIGINT)
    node.expect("once more to stop it at once")
    node.signal(signal.SIGINT)
    assert node.wait() != 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_worker_comes_back(start, end_file):
    """kill -9 of a worker with --max-restarts: torchelastic starts it anew, and it joins as a new incarnation."""
    stays = start(*worker(end_file))
    stays.expect("generation 1")
    victim = start(*worker(end_file), options=("--max-restarts=1",))
    pid = int(victim.expect(r"pid (\d+) incarnation 1")[1])
    victim.expect("generation 2 rank 1 of 2")
    os.kill(pid, signal.SIGKILL)
    stays.expect("generation 3 rank 0 of 1")
    victim.expect("incarnation 2")
    victim.expect("generation 4 rank 1 of 2")


def test_user_error(start, end_file):
    """A worker raises: its node fails with the user's traceback, the others go on."""
    stays = start(*worker(end_file))
    stays.expect("generation 1")
    fails = start(*worker(end_file, "20"))
    stays.expect("generation 2")
    assert fails.wait() == 1
    assert "ValueError: the user's own mistake" in fails.output
    stays.expect("generation 3 rank 0 of 1")


def test_no_orphans(start, end_file):
    """kill -9 of torchrun itself: its worker ends by itself and says why."""
    node = start(*worker(end_file))
    node.expect("generation 1")
    node.signal(signal.SIGKILL)
    node.expect("the agent .torchrun. of this worker is gone")


STOCK_DDP = """
    import torch.distributed as dist
    dist.init_process_group("gloo")
"""


def test_stock_ddp_script(start, tmp_path):
    """A script that makes its own process group dies at once, and the error names both ways out."""
    script = tmp_path / "stock.py"
    script.write_text(textwrap.dedent(STOCK_DDP))
    node = start(str(script), conf="mode=live")
    assert node.wait() == 1
    assert "ValueError" in node.output
    assert "Add ElasticCallback() to the Trainer's callbacks" in node.output
    assert "torchrun --rdzv-conf mode=restart" in node.output


def test_script_without_callback(start, tmp_path):
    """A script that never constructs the callback is stopped after attach_timeout, with the same ways out."""
    script = tmp_path / "alone.py"
    script.write_text("import signal\nsignal.pause()\n")
    node = start(str(script), conf="mode=live,attach_timeout=0.5")
    assert node.wait() == 1
    assert "1 workers of this node have not constructed `ElasticCallback` within 0.5 s" in node.output
    assert "add `ElasticCallback()`" in node.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"conf": "stabilty_window=1"}, "unknown key 'stabilty_window' (did you mean 'stability_window'?)"),
        ({"conf": "mode=restrt"}, "mode must be one of live, restart, auto"),
        ({"options": ("--rdzv-endpoint=127.0.0.1:1",)}, "nothing listens there (connection refused)"),
    ],
)
def test_bad_input(start, end_file, options, message):
    """A wrong key, a mode that is not there, no etcd at the endpoint: one clear error, at once."""
    node = start(*worker(end_file), **options)
    assert node.wait() == 1
    assert message in node.output
