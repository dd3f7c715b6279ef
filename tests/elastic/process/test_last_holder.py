"""The only member that holds a run's state leaves or dies, while a newcomer is still setting itself up."""

from __future__ import annotations

import signal

import psutil
import pytest

from dtf_lightning.elastic.observe.ledger import read_ledger
from dtf_lightning.elastic.testkit.faults import Fault
from support.elastic.programs.node_process import LEAP
from support.elastic.training import Training

pytestmark = pytest.mark.process


@pytest.fixture
def start(make_run, tmp_path):
    """`a` trains alone, and `b` is held in its set-up until `release_b`."""

    def start_run(*, agent=None, **options):
        fields = {key: options.pop(key) for key in ("snapshot_every", "checkpoint_every", "recipe") if key in options}
        held = Fault(at="setup", rank=1, action="hold", until=str(tmp_path / "go"))
        training = Training(until_stopped=True, batch_norm=False, faults=(held,), **fields)
        run = make_run(training, **options)
        run.agent = agent or {}
        run.start("a")
        run.wait_for_draws(20)
        run.start("b")
        run.wait_for_file(tmp_path / "go.held-1")
        return run

    return start_run


def finish(run, *, failed=None):
    """End the training of `b`, after it has made steps of its own; they and `a`'s are one history."""
    run.wait_for_steps(20)
    run.stop()
    codes = run.wait_until_over(failed=failed)
    run.check(survivors=1)
    assert all(step > 0 for generation, step in run.audit().resume_steps.items() if generation > 1)
    assert not [*run.folder.glob("memory/*"), *run.folder.glob("snapshots/*")], "what was kept goes with the run's end"
    return codes


def test_it_waits_for_the_newcomer(start, tmp_path):
    """`a` is asked to leave: it trains on until `b` has its state, then leaves; no step is lost."""
    run = start(agent={"grace_period": 100.0})
    run.nodes["a"].send(signal.SIGTERM)
    run.wait_for(lambda view: view.status is not None and "waits for b" in view.status.reason, "a waits for b")
    run.wait_for_steps(10)
    (tmp_path / "go").touch()
    run.wait_for_members(["b"])
    assert finish(run)["a"] == 0
    assert run.audit().resume_steps.keys() == {1, 2, 3}, run.last_words()


def test_it_leaves_its_state_behind(start, tmp_path):
    """Half of its grace period is over before `b` is ready: a snapshot lies on its node and in the run's folder, `b` goes on there."""
    run = start(agent={"grace_period": 120.0}, heartbeat_timeout=100.0, rescale_timeout=200.0)
    run.nodes["a"].send(signal.SIGTERM)
    run.wait_for(lambda view: view.status is not None and "waits for b" in view.status.reason, "a waits for b")
    run.nodes["a"].send(LEAP)  # half of the period is over, and it waits no longer
    assert run.server.wait(run.nodes["a"].pid, 60) == 0
    in_memory, on_disk = (list(run.folder.glob(f"{where}/*/*/*.snapshot")) for where in ("memory", "snapshots"))
    assert len(in_memory) == len(on_disk) == 1
    drawn = max(draw["step"] for path in run.ledgers() for draw in read_ledger(path) if draw["kind"] == "draw")
    in_memory[0].unlink()
    (tmp_path / "go").touch()
    run.wait_for_members(["b"])
    finish(run)
    assert run.audit().resume_steps[2] == drawn + 1, (
        "the last step drawn was made, which only what it left behind tells"
    )


@pytest.mark.parametrize("victim", ["worker", "agent"])
@pytest.mark.parametrize("kept", ["snapshot_every", "checkpoint_every"])
def test_it_is_killed(start, tmp_path, kept, victim):
    """`b` goes on from the newest snapshot, or checkpoint, that `a` has written."""
    run = start(**{kept: 3})
    if victim == "worker":
        psutil.Process(run.nodes["a"].worker_pids()[0]).kill()
    else:
        run.nodes["a"].kill_agent()
    run.server.wait(run.nodes["a"].pid, 60)
    (tmp_path / "go").touch()
    run.wait_for_members(["b"])
    run.wait_for_steps(20)
    assert run.audit().resume_steps[2] % 3 == 0
    finish(run)


def test_nothing_is_kept(start, tmp_path):
    """There is no state anywhere: `b` waits for one that has it, then ends with exit code 1 and the sentence that says so."""
    run = start(recipe="has_no_patience")
    psutil.Process(run.nodes["a"].worker_pids()[0]).kill()
    run.server.wait(run.nodes["a"].pid, 60)
    (tmp_path / "go").touch()
    assert run.server.wait(run.nodes["b"].pid, 60) == 1
    assert "had trained, and nobody is left who holds its state" in run.nodes["b"].log()
    assert "--rdzv-conf fresh=true" in run.nodes["b"].log()
    assert run.audit().resume_steps == {1: 0}


def test_nothing_is_kept_and_nobody_minds(start, tmp_path):
    """The same with `fresh=true`: `b` begins at step 0."""
    run = start(fresh=True, recipe="has_no_patience")
    psutil.Process(run.nodes["a"].worker_pids()[0]).kill()
    run.server.wait(run.nodes["a"].pid, 60)
    (tmp_path / "go").touch()
    run.wait_for_members(["b"])
    run.wait_for_steps(20)
    assert run.audit().resume_steps == {1: 0, 2: 0}
    run.stop()
    run.wait_until_over(failed=1)
    run.check(survivors=1)
