"""What a forge is told, against fakes that answer as GitHub's and GitLab's APIs do."""

from __future__ import annotations

import json

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.ci.forges.api import ForgeApi, ForgeRefused
from dtf_lightning.farm.ci.forges.place import Place
from dtf_lightning.farm.ci.forges.telling import described, forge_of
from dtf_lightning.farm.ci.report import Case, Group, Judged, Outcome, Report

FAILED = Case(
    name="test_a", classname="tests.x", outcome=Outcome.FAILED, message="assert 1 == 2", file="tests/x.py", line=3
)
PASSED = Case(name="test_b", outcome=Outcome.PASSED)
REPORT = Report(name="farm tests", groups=(Group(title="g", kind="test", cases=(FAILED, PASSED)),))
GOOD = Report(name="farm tests", groups=(Group(title="g", kind="test", cases=(PASSED,)),), ended_well=True)
NOISY = Judged(
    verdict="v", metric="time", state="too noisy", base="a", candidate="b", num_pairs=40, sentence="time: too noisy"
)


def place(forge, name):
    repository = {"github": "o/r", "gitlab": "42"}[name]
    return Place(
        forge=name, api=forge.url, repository=repository, commit="abc123", change=7, link="https://ci/1", token="secret"
    )


@pytest.fixture(params=["github", "gitlab"])
def told(request, forge):
    """The forge as it is told, and its pauses."""
    pauses = []
    return forge_of(place(forge, request.param), pause=pauses.append), request.param, pauses


def test_status(forge, told):
    """Failed, passed, and what could not be told; under the job's name, with a link."""
    one, name, _ = told
    for report in (REPORT, GOOD, Report(name="farm tests", judged=(NOISY,))):
        one.status(report)
    states = {"github": ["failure", "success", "error"], "gitlab": ["failed", "success", "failed"]}[name]
    assert [status["state"] for status in forge.statuses] == states
    assert forge.statuses[0]["description"] == "1 of 2 tests failed"
    assert forge.statuses[0]["target_url"] == "https://ci/1"
    assert forge.statuses[0]["context" if name == "github" else "name"] == "farm tests"
    assert forge.tokens == {"Bearer secret" if name == "github" else "secret"}


def test_one_comment(forge, told):
    """It is found again behind more than one page of others', and written anew; another job's stays."""
    one, *_ = told
    forge.comments = [{"id": number, "body": "hello"} for number in range(250)]
    one.comment(REPORT)
    one.comment(Report(name="another job", groups=REPORT.groups))
    one.comment(GOOD)
    ours = [comment["body"] for comment in forge.comments[250:]]
    assert len(ours) == 2
    assert "farm tests: passed" in ours[0]
    assert "another job: failed" in ours[1]
    assert "tests/x.py" not in ours[0]


def test_a_lost_answer_makes_no_second_comment(forge, told):
    """The look, then the comment whose answer is lost; the next look finds it."""
    one, _, pauses = told
    forge.faults = [200, "lost"]
    one.comment(REPORT)
    assert len(forge.comments) == 1
    assert len(pauses) == 1


def test_a_comment_of_somebody_else_is_left_alone(forge, told):
    """Who has copied the mark has not got our comment: it may not be changed, and ours is written."""
    one, name, _ = told
    one.comment(REPORT)
    path = {
        "github": "PATCH /repos/o/r/issues/comments/1000",
        "gitlab": "PUT /projects/42/merge_requests/7/notes/1000",
    }[name]
    forge.refused[path] = (403, "Resource not accessible by integration")
    one.comment(GOOD)
    assert ["failed" in comment["body"].splitlines()[1] for comment in forge.comments] == [True, False]


def test_not_now_is_asked_again_and_refusals_are_not(forge, told):
    one, _, pauses = told
    forge.faults = [503, 429]
    one.status(GOOD)
    assert len(pauses) == 2
    forge.faults = [502, 502, 502]
    with pytest.raises(ForgeRefused, match="502 not now"):
        one.status(GOOD)
    forge.asked.clear()
    forge.faults = [403]
    with pytest.raises(ForgeRefused, match="403 not now"):
        one.status(GOOD)
    assert len(forge.asked) == 1


def test_the_token_goes_nowhere_else(forge, told):
    """A redirect is a refusal; an API without TLS is bad input."""
    one, *_ = told
    forge.faults = [302]
    with pytest.raises(ForgeRefused, match="302"):
        one.status(GOOD)
    assert all("elsewhere" not in path for _, path, _ in forge.asked)
    with pytest.raises(SettingsError, match="expected one with https"):
        ForgeApi("http://forge.example", {})
    assert "secret" not in repr(place(forge, "github"))


def test_check_runs(forge):
    """At most 50 annotations a request; GitLab has none."""
    cases = tuple(Case(name=f"t{number}", outcome=Outcome.FAILED, file="a.py", line=number) for number in range(120))
    forge_of(place(forge, "github")).check_run(Report(name="n", groups=(Group(title="g", kind="test", cases=cases),)))
    assert [len(check["output"]["annotations"]) for check in forge.checks] == [50, 50, 20]
    lines = [one["start_line"] for check in forge.checks for one in check["output"]["annotations"]]
    assert lines == [1, *range(1, 120)]
    assert forge.checks[0]["conclusion"] == "failure"
    with pytest.raises(SettingsError, match="GitLab has no check runs"):
        forge_of(place(forge, "gitlab")).check_run(GOOD)


def test_the_same_status_again_on_gitlab(forge):
    one = forge_of(place(forge, "gitlab"))
    forge.refused["POST /projects/42/statuses/abc123"] = (
        400,
        "Cannot transition status via :run from :success (Reason(s): ...)",
    )
    one.status(GOOD)
    forge.refused["POST /projects/42/statuses/abc123"] = (400, "name is invalid")
    with pytest.raises(ForgeRefused, match="invalid"):
        one.status(GOOD)


def test_where_a_job_runs(tmp_path):
    """By what each forge's runner sets; of a pull request the head, which somebody has made."""
    event = tmp_path / "event.json"
    event.write_text(json.dumps({"pull_request": {"number": 7, "head": {"sha": "abc123"}}}))
    github = {
        "GITHUB_ACTIONS": "true", "GITHUB_REPOSITORY": "o/r", "GITHUB_SHA": "merge", "GITHUB_EVENT_PATH": str(event),
        "GITHUB_SERVER_URL": "https://github.com", "GITHUB_RUN_ID": "5", "GITHUB_TOKEN": "t", "GITHUB_API_URL": "https://api",
    }  # fmt: skip
    found = Place.of(github)
    assert (found.forge, found.commit, found.change) == ("github", "abc123", 7)
    assert found.link == "https://github.com/o/r/actions/runs/5"
    event.write_text("{ broken")
    assert (Place.of(github).commit, Place.of(github).change) == ("merge", None)
    gitlab = Place.of({"GITLAB_CI": "true", "CI_PROJECT_ID": "42", "CI_COMMIT_SHA": "abc", "CI_MERGE_REQUEST_IID": "7"})
    assert (gitlab.forge, gitlab.repository, gitlab.change) == ("gitlab", "42", 7)
    buildkite = Place.of({"BUILDKITE": "true", "BUILDKITE_PULL_REQUEST": "false", "BUILDKITE_COMMIT": "abc"})
    assert (buildkite.forge, buildkite.change) == ("buildkite", None)
    assert Place.of({}).forge == "none"
    with pytest.raises(SettingsError, match="expected one of github"):
        Place.of({}, "gitea")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (Place(), "a job on none has no status"),
        (Place(forge="buildkite"), "a job on buildkite has no status"),
        (Place(forge="github", repository="o/r", commit="a"), r"there is no token here; expected \$GITHUB_TOKEN"),
        (Place(forge="gitlab", repository="1", token="t"), "there is no commit here"),
    ],
)
def test_who_can_be_told_nothing(where, message):
    with pytest.raises(SettingsError, match=message):
        forge_of(where)


def test_a_description_fits():
    groups = tuple(Group(title=str(number), kind="test", cases=(FAILED,)) for number in range(20))
    assert len(described(Report(name="n", groups=groups))) == 140
