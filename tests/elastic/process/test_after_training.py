"""What becomes of a live run's nodes once training is over and scripts go on: they export, test, predict."""

from __future__ import annotations

import pytest

from dtf_lightning.elastic.testkit.faults import Fault
from support.elastic.run import exactly
from support.elastic.training import Training

pytestmark = pytest.mark.process


def test_a_node_comes_while_the_others_export(make_run, tmp_path):
    """It ends with exit code 0 and a sentence; nothing is trained again, and the others do not notice it."""
    go = str(tmp_path / "go")
    held = Fault(at="train_end", action="hold", until=go)
    run = make_run(Training(faults=(held,)), **exactly(2))
    run.start("a", "b")
    for rank in (0, 1):
        run.wait_for_file(tmp_path / f"go.held-{rank}")
    drawn = run.audit().committed_steps
    run.start("c")
    assert run.server.wait(run.nodes["c"].pid, 60) == 0
    assert (
        "has finished (2 of 2 members finished), and a, b still do what the script does" in run.nodes["c"].agent_log()
    )
    (tmp_path / "go").touch()
    assert run.wait_until_over() == {"a": 0, "b": 0, "c": 0}
    run.check(survivors=2)
    assert run.audit().committed_steps == drawn
