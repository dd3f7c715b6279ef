"""One worker stops by itself: the run ends in words, or all stop where it did. Nobody waits for ever."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.elastic.run import exactly
from support.elastic.torchrun import Torchrun
from support.elastic.training import Training

pytestmark = pytest.mark.process

HOOKS = {
    "mid_epoch": ("on_train_batch_end", 5, {}),
    "with_checkpoints": ("on_train_batch_end", 5, {"checkpoint_every": 5, "callbacks": ("lr_monitor",)}),
    "epoch_end": ("on_validation_end", 17, {}),
    "mid_accumulation": ("on_train_batch_start", 5, {"accumulate": 4}),
}


def training(hook: str, step: int, stop: str, options: dict) -> Training:
    callbacks = (f"stops_alone:{hook}:{step}", *options.get("callbacks", ()))
    return Training(stop=stop, **{**options, "callbacks": callbacks})


def test_stopped_apart(make_run):
    """The message names who stopped, at which step and why, and the line to write; both nodes end by it.

    Four runs at once, which stop in four places: each stands still for five seconds before it is ended.
    """
    runs = {
        place: make_run(training(hook, step, "together", options), **exactly(2))
        for place, (hook, step, options) in HOOKS.items()
    }
    for run in runs.values():
        run.start("a", "b")
    for place, run in runs.items():
        run.wait_until_over(failed=2)
        for name in "ab":
            text = run.nodes[name].log()
            step = HOOKS[place][1]
            assert f"stopped (worker 0 after step {step}: trainer.should_stop was set)" in text, place
            assert 'ElasticCallback(stop="any")' in text, place
        assert run.results() == {}, place


@pytest.mark.parametrize(("hook", "step", "options"), HOOKS.values(), ids=HOOKS)
def test_all_stop_with_the_first(make_run, hook, step, options):
    """`stop="any"`: same step, same weights, on both; what was trained was trained once."""
    run = make_run(training(hook, step, "any", options), **exactly(2))
    run.start("a", "b")
    run.wait_until_over()
    run.check(survivors=2, complete=False)
    assert {result["same"]["global_step"] for result in run.results().values()} == {step}


# --- restart mode ------------------------------------------------------------------------------------------------------

SCRIPT = Path(__file__).parents[2] / "support/elastic/programs/stops_script.py"
C10D = ("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--rdzv-id=stops")
IN_RESTART_MODE = ["on_train_batch_end:5", "on_validation_end:10", "on_train_epoch_end:20"]


@pytest.fixture
def start(tmp_path: Path, fork_server: Any, etcd: Any) -> Iterator[Callable[..., Torchrun]]:
    """Start a node of restart mode: of two under etcd, or the only one, of two workers, under torch's own rendezvous."""
    nodes: list[Torchrun] = []

    def make(stop: str, how: str, *, rendezvous: tuple[str, ...] | None = None, **env: str) -> Torchrun:
        node = Torchrun(
            etcd.endpoint,
            f"stops-{os.getpid()}",
            str(SCRIPT),
            *(str(tmp_path), stop, how),
            nnodes="2:2" if rendezvous is None else "1",
            num_workers=1 if rendezvous is None else 2,
            conf="mode=restart,initial_window=0.3",
            env=env,
            rendezvous=rendezvous,
            server=fork_server,
        )
        nodes.append(node)
        return node

    yield make
    for node in nodes:
        node.__exit__()


@pytest.mark.parametrize("how", IN_RESTART_MODE[1:])
def test_stopped_apart_in_restart_mode(start, how):
    """Two nodes under etcd: both end, in seconds, with the sentence that says who stopped, where and why."""
    nodes = [start("together", how) for _ in range(2)]
    step = how.partition(":")[2]
    for node in nodes:
        assert node.wait() == 1
        assert re.search(rf"rank 0 \(.*\) stopped \(after step {step}: trainer.should_stop was set\)", node.output)
        assert 'ElasticCallback(stop="any")' in node.output
        assert "done rank" not in node.output


def test_stopped_apart_under_another_rendezvous(start):
    """Two workers of one node under c10d, in the middle of an accumulation, where no step boundary lies between.

    The first to end has 1, the other is asked to go and goes: none waits in gloo until torchelastic kills it.
    """
    node = start("together", "on_train_batch_end:1", rendezvous=C10D, ACCUMULATE="4")
    node.expect("stopped apart")
    assert node.wait() == 1
    codes = re.findall(r"exitcode +: (-?\d+)", node.output)
    assert len(codes) == 2, node.output
    assert "1" in codes, node.output
    assert "-9" not in codes, node.output


@pytest.mark.parametrize(("stop", "how"), [*(("any", how) for how in IN_RESTART_MODE), ("together", "metric")])
def test_all_stop_with_the_first_in_restart_mode(start, stop, how):
    """`stop="any"`; and EarlyStopping on a metric that differs, which Lightning lets all ranks decide together."""
    node = start(stop, how, rendezvous=C10D)
    assert node.wait() == 0
    done = re.findall(r"done rank \d of 2 step (\d+)", node.output)
    assert len(done) == 2, node.output
    assert len(set(done)) == 1, done
    assert int(done[0]) == (int(how.partition(":")[2]) if stop == "any" else int(done[0]))
    assert int(done[0]) < 80
