"""`dtf farm ci report --plan`: what a farm says of a plan, as a job's report."""

from __future__ import annotations

import contextlib
import json

import pytest

from dtf_lightning.__main__ import main
from support.farm.playing import Players

pytestmark = pytest.mark.process


def test_a_plan(client, coordinator, tmp_path, monkeypatch, capsys):
    """A failure in quarantine does not count; a plan that is not known is bad input."""
    monkeypatch.chdir(tmp_path)
    for name in ("GITHUB_ACTIONS", "GITLAB_CI", "BUILDKITE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "plan.yaml").write_text("tasks:\n  flaky: {run: f}\n  sound: {run: s}\n  broken: {run: b}\n")
    place = ["--farm", coordinator.url, "--token-file", str(coordinator.token_file)]
    client.put_into_quarantine("default", "flaky", owner="ada", reason="#7", seconds=1000.0)
    with contextlib.closing(Players(coordinator, lambda worker, asked: asked.command[-1] in ("f", "b"))):
        assert main(["farm", "run", *place, "--no-source", "--json", "plan.yaml"]) == 1
        plan = json.loads(capsys.readouterr().out)["plan_id"]
        assert main(["farm", "ci", "report", *place, "--plan", plan]) == 0
    assert capsys.readouterr().out == "farm tests: failed: 1 of 3 tasks failed, 1 skipped\n"
    summary = (tmp_path / "dtf-farm" / "summary.md").read_text()
    assert "<code>broken</code>" in summary
    assert "<code>flaky</code>" not in summary
    assert main(["farm", "ci", "report", *place, "--plan", "none"]) == 2
    assert "the farm knows no tasks of it" in capsys.readouterr().err
