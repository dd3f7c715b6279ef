"""`resume=true`: all nodes of a run leave, and others go on with it later; once it has finished, it stays so."""

from __future__ import annotations

import signal

import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.testkit.faults import Fault, held_mark
from support.elastic.run import PATIENCE
from support.elastic.training import Training

pytestmark = pytest.mark.process


def test_all_leave_and_others_go_on(make_run):
    """Two nodes leave at once. A third goes on at the next step, on another machine's memory; a fourth finds it finished."""
    run = make_run(Training(until_stopped=True, batch_norm=False))
    run.elastic, run.agent = {"resume": True}, {"lease_ttl": 2.0}
    run.start("a", "b")
    run.wait_for_members(["a", "b"])
    run.wait_for_steps(20)
    for name in ("a", "b"):
        run.nodes[name].send(signal.SIGTERM)
    assert run.wait_until_over() == {"a": 0, "b": 0}
    last = run.audit().committed_steps
    for kept in run.folder.glob("memory/*/*/*.snapshot"):
        kept.unlink()  # the machines are others'
    run.start("c")
    run.wait_for_members(["c"])
    run.wait_for_steps(20)
    run.stop()
    assert run.wait_until_over() == {"a": 0, "b": 0, "c": 0}
    run.check(survivors=1)
    account = run.audit()
    assert len(account.instances) == 1
    assert last <= account.resume_steps[max(account.resume_steps)] < account.committed_steps
    assert "failed" not in run.nodes["c"].agent_log(), "who has left has not failed"
    run.start("d")
    assert run.wait_until_over()["d"] == 0
    assert "with resume=true it is not trained again" in run.nodes["d"].agent_log()
    assert run.audit().committed_steps == account.committed_steps


def test_who_died_before_the_first_step_has_left_nothing_to_go_on_with(make_run, tmp_path):
    """The only node is killed in its first batch, agent and all: the next one begins, for nobody has ever heard of a step."""
    go = tmp_path / "go"
    run = make_run(
        Training(
            faults=(Fault(at="forward", step=0, action="hold", until=str(go)),), until_stopped=True, batch_norm=False
        )
    )
    run.elastic, run.agent = {"resume": True}, {"lease_ttl": 2.0}
    run.start("a")
    poll_until(held_mark(go, 0).exists, PATIENCE, "its first batch")
    run.nodes["a"].kill_agent()
    run.server.wait(run.nodes["a"].pid, PATIENCE)
    go.touch()
    run.start("b")
    run.wait_for_members(["b"])
    run.wait_for_steps(20)
    run.stop()
    assert run.wait_until_over(failed=1)["b"] == 0
    account = run.audit()
    assert account.resume_steps == {1: 0, 2: 0}
    assert len(account.instances) == 1
