"""`resume=true`: all nodes of a run leave, and others go on with it later; once it has finished, it stays so."""

from __future__ import annotations

import signal

import pytest

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
