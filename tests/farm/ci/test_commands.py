"""`dtf farm ci report` as a job runs it: files, output, and what the forge is told."""

from __future__ import annotations

import json

import pytest

from dtf_lightning.__main__ import main

JUNIT = """<testsuite><testcase classname="t" name="good"/><testcase classname="t" name="bad">
<failure message="::set-output name=a::b">tests/t.py:4: Error</failure></testcase></testsuite>"""


@pytest.fixture
def job(tmp_path, monkeypatch, capsys):
    """In an empty folder, with only these variables of a forge."""
    for name in ("GITHUB_ACTIONS", "GITLAB_CI", "BUILDKITE", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "junit.xml").write_text(JUNIT)

    def run(*words, **variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))
        code = main(["farm", "ci", "report", *words])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_on_github(job, forge, tmp_path):
    """A summary, an annotation at the line, and all that the API is told; what tests said is no command."""
    (event := tmp_path / "event.json").write_text(
        json.dumps({"pull_request": {"number": 7, "head": {"sha": "abc123"}}})
    )
    summary = tmp_path / "step-summary.md"
    code, out, err = job(
        "junit.xml", "--ended", "failure", "--tell", "status,comment,check-run",
        GITHUB_ACTIONS="true", GITHUB_API_URL=forge.url, GITHUB_REPOSITORY="o/r", GITHUB_SHA="merge", GITHUB_TOKEN="secret",
        GITHUB_EVENT_PATH=event, GITHUB_STEP_SUMMARY=summary,
    )  # fmt: skip
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "farm tests: failed: 1 of 2 tests failed",
        "::error file=tests/t.py,line=4,title=t.bad::::set-output name=a::b",
    ]
    assert "<code>t.bad</code>" in summary.read_text()
    assert sorted(path.name for path in (tmp_path / "dtf-farm").iterdir()) == [
        "code-quality.json",
        "report.xml",
        "summary.md",
    ]
    assert (len(forge.statuses), len(forge.comments), len(forge.checks)) == (1, 1, 1)
    assert "secret" not in out + summary.read_text() + str(forge.comments)


def test_what_a_forge_refuses_is_a_warning(job, forge):
    """As of a fork's job, whose token may only read: the job's end is that of its command."""
    forge.refused["POST /repos/o/r/statuses/abc123"] = (403, "Resource not accessible by integration")
    code, _, err = job(
        "--ended", "0", "--tell", "status,comment", GITHUB_ACTIONS="true", GITHUB_API_URL=forge.url, GITHUB_REPOSITORY="o/r",
        GITHUB_SHA="abc123", GITHUB_TOKEN="t", GITHUB_EVENT_PATH="", GITHUB_STEP_SUMMARY="",
    )  # fmt: skip
    assert code == 0
    assert "--tell status: POST" in err
    assert "403 Resource not accessible by integration" in err
    assert not forge.comments  # a push has no change


def test_on_gitlab(job, forge, tmp_path):
    code, out, _ = job(
        "junit.xml", "--tell", "comment", GITLAB_CI="true", CI_API_V4_URL=forge.url, CI_PROJECT_ID="42", CI_COMMIT_SHA="abc123",
        CI_MERGE_REQUEST_IID="7", DTF_GITLAB_TOKEN="t",
    )  # fmt: skip
    assert (code, out) == (0, "farm tests: failed: 1 of 2 tests failed\n")
    assert "1 of 2 tests failed" in forge.comments[0]["body"]
    (one,) = json.loads((tmp_path / "dtf-farm" / "code-quality.json").read_text())
    assert one["location"] == {"path": "tests/t.py", "lines": {"begin": 4}}


def test_on_buildkite(job, tmp_path, monkeypatch):
    """Its agent is given the summary."""
    (agent := tmp_path / "bin" / "buildkite-agent").parent.mkdir()
    agent.write_text('#!/bin/sh\necho "$@" > told; cat >> told\nexit "$(cat code)"\n')
    agent.chmod(0o755)
    monkeypatch.setenv("PATH", str(agent.parent), prepend=":")
    (tmp_path / "code").write_text("0")
    assert job("junit.xml", BUILDKITE="true")[0::2] == (0, "")
    told = (tmp_path / "told").read_text()
    assert told.startswith("annotate --style error --context farm tests\n<!-- dtf farm: farm-tests -->\n")
    (tmp_path / "code").write_text("4")
    assert job("junit.xml", BUILDKITE="true")[2] == (
        "dtf farm ci: the build was not annotated: buildkite-agent ended with exit code 4\n"
    )


def test_bad_input(job, tmp_path):
    """What cannot be read is exit code 2, and is reported; wrong words are, before anything is told."""
    code, out, err = job("junit.xml", "none.xml")
    assert (code, out) == (2, "farm tests: failed: 1 of 2 tests failed; 1 of the results could not be read\n")
    assert "none.xml is not there: the command ended before it was written" in err
    assert "none.xml" in (tmp_path / "dtf-farm" / "summary.md").read_text()
    assert job("--tell", "all")[0] == 2
    assert job("--ended", "perhaps")[0] == 2
    assert job("--forge", "gitea")[0] == 2
    code, _, err = job("--tell", "status")
    assert (code, "a job on none has no status, comment or check run" in err) == (2, True)
    (tmp_path / "file").write_text("")
    code, _, err = job("--output", "file")
    assert (code, "the report cannot be written to file" in err) == (2, True)


def test_a_comparison(job, tmp_path, monkeypatch, capsys):
    """What `dtf farm compare --json` printed, as it is."""
    monkeypatch.setenv("DTF_FARM_HOME", str(tmp_path / "home"))
    line = """printf '{"latency": %s}' > $DTF_FARM_RESULTS/told.jsonl"""
    words = ["--metric", "latency:ms", "--json", "--warm-up", "0", line.replace("%s", "20"), line.replace("%s", "25")]
    assert main(["farm", "compare", *words]) == 1
    (tmp_path / "compare.json").write_text(capsys.readouterr().out)
    code, out, _ = job("compare.json", "--ended", "1")
    assert (code, out) == (0, "farm tests: failed: 1 comparison: 1 slower\n")
    assert "slower by 25.0 %" in (tmp_path / "dtf-farm" / "summary.md").read_text()
