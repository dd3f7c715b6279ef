"""`dtf farm bisect` on this machine: real commits, and commands that take milliseconds."""

from __future__ import annotations

import json

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.inquiries.bisecting import Answer, Answered, Bisected, NoMoreTests, bisect, sentence
from dtf_lightning.farm.inquiries.commits import Commit, commits_between
from dtf_lightning.farm.verdicts.bisection import Bisection, Found
from support.farm.repository import Repository
from support.store_worlds import ManualClock

pytestmark = pytest.mark.process


@pytest.fixture
def repository(tmp_path, monkeypatch):
    made = Repository(tmp_path / "repository")
    monkeypatch.chdir(made.folder)
    return made


@pytest.fixture
def run(capsys):
    def ask(*words):
        code = main(["farm", "bisect", *words])
        told = capsys.readouterr()
        return code, told.out + told.err

    return ask


def test_a_failure(repository, run):
    """The culprit with its subject; commits that cannot be built are left out, and nothing is left in the repository."""
    digests = repository.row(["exit 0", "exit 0", "broken", "exit 0", "exit 1", "exit 1", "exit 1"])
    words = [digests[0], digests[-1], "--flaky", "--setup", "! grep -q broken run.sh", "--", "sh", "run.sh"]
    code, told = run("--json", *words)
    shown = json.loads(told)
    assert (code, shown["culprit"]) == (0, [digests[4]])
    assert shown["sentence"].startswith(f"introduced by {digests[4][:10]} (commit 4) (9"), told
    assert repository.git("worktree", "list").count("\n") == 0
    assert repository.git("status", "--porcelain") == ""
    assert shown["chance"] > 0.97


def test_a_failure_that_shows_sometimes(repository, run, tmp_path):
    """Every second run fails, from the culprit on."""
    flips = f"n=$(cat {tmp_path}/n 2> /dev/null || echo 0); echo $((n + 1)) > {tmp_path}/n; exit $((n % 2))"
    digests = repository.row(["exit 0"] * 3 + [flips] * 3)
    code, told = run(digests[0], digests[-1], "--flaky", "--", "sh", "run.sh")
    assert code == 0, told
    assert told.startswith(f"introduced by {digests[3][:10]} (commit 3) (9"), told


def test_who_is_not_what_it_is_said_to_be(repository, run):
    """Exit code 1: the bad commit passes, or the good one fails, too."""
    digests = repository.row(["exit 0"] * 3 + ["exit 1"] * 3)
    code, told = run(digests[0], digests[2], "--flaky", "--", "sh", "run.sh")
    assert (code, told.startswith("the bad commit is not bad: ")) == (1, True), told
    code, told = run(digests[3], digests[5], "--flaky", "--", "sh", "run.sh")
    assert (code, told.startswith("the good commit is not good: ")) == (1, True), told


def test_what_cannot_be_built(repository, run):
    """Between two that can: they are told together. At an end: it is said which."""
    digests = repository.row(["exit 0", "exit 125", "exit 125", "exit 1"])
    code, told = run(digests[0], digests[3], "--flaky", "--", "sh", "run.sh")
    assert code == 0, told
    assert "introduced by one of 3 commits: " in told
    assert "so that they cannot be told apart" in told
    code, told = run(digests[0], digests[2], "--flaky", "--", "sh", "run.sh")
    assert (code, "the bad commit cannot be tested" in told) == (2, True), told


def test_timings(repository, run):
    """A step of 10 % in what the command reports; before it there are small ones, of which none matters."""
    times = [1000, 1006, 1100]
    digests = repository.row([f"""printf '{{"latency": {time}}}\\n' > $DTF_FARM_RESULTS/t.jsonl""" for time in times])
    code, told = run(digests[0], digests[-1], "--metric", "latency:ms", "--sure", "90", "--", "sh", "run.sh")
    assert code == 0, told
    assert told.startswith(f"introduced by {digests[2][:10]} (commit 2) (9"), told
    assert "comparisons)" in told
    code, told = run(digests[0], digests[1], "--metric", "latency:ms", "--", "sh", "run.sh")
    assert (code, told.startswith("the bad commit is not bad: ")) == (1, True), told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "got nothing to bisect"),
        (["HEAD", "--", "true"], "expected two commits and a command"),
        (["HEAD~1", "HEAD"], "expected two commits and a command"),
        (["HEAD", "HEAD", "--", "true"], "are the same commit"),
        (["HEAD", "HEAD~1", "--", "true"], "is not on the line of HEAD~1's first parents"),
        (["nowhere", "HEAD", "--", "true"], "'nowhere' is no commit"),
        (["HEAD~1", "HEAD", "--sure", "100", "--", "true"], "--sure 100"),
        (["HEAD~1", "HEAD", "--runs", "0", "--", "true"], "--runs 0: expected 1 to 100000"),
        (["HEAD~1", "HEAD", "--budget", "soon", "--", "true"], "--budget soon: expected seconds"),
        (["HEAD~1", "HEAD", "--", "false"], "the good or the bad commit cannot be timed"),
    ],
)
def test_bad_input(repository, run, words, told):
    repository.row(["exit 0"] * 2)
    code, said = run(*words)
    assert (code, told in said) == (2, True), said


def test_the_row_of_commits(repository):
    """First parents only: a merge stands for its branch; one that changes only text is less likely."""
    repository.commit("start", {"a.py": "1"})
    repository.git("checkout", "-q", "-b", "side")
    repository.commit("side", {"b.py": "1"})
    repository.git("checkout", "-q", "-")
    repository.commit("text", {"README.md": "1"})
    repository.git("merge", "-q", "--no-ff", "-m", "merged", "side")
    commits = commits_between(repository.folder, "HEAD~2", "HEAD")
    assert [(commit.subject, commit.merge, commit.weight < 1) for commit in commits] == [
        ("start", False, False), ("text", False, True), ("merged", True, False)
    ]  # fmt: skip
    told = sentence(Bisected(bisection=Bisection(weights=(1.0, 1.0)), found=Found(commits=(2,), chance=0.99)), commits)
    assert "it is a merge: to look into its branch: dtf farm bisect $(git merge-base " in told


COMMITS = [Commit(digest=f"{at:040}", subject=f"s{at}") for at in range(5)]


class Told:
    """Tests with these answers; ends when there are no more."""

    def __init__(self, fails, ends=None):
        self.fails, self.ends, self.made = fails, ends, []

    def run(self, positions):
        if self.ends is not None and len(self.made) >= 4:
            raise self.ends
        self.made += positions
        return [Answered(position=at, answer=Answer.FAILED if self.fails(at) else Answer.PASSED) for at in positions]


def search(tests, **options):
    options = {"max_runs": 100, "seconds": 60.0} | options
    return bisect(Bisection(weights=(1.0,) * 4), tests, ManualClock(), **options)


def test_it_ends_with_what_was_seen():
    """By its number of tests, its budget, Ctrl-C, and what makes the tests; never more tests than were allowed."""
    ended = search(tests := Told(lambda at: at >= 2), max_runs=5, at_once=4)
    assert (len(tests.made), ended.found, ended.ended) == (5, None, "5 tests were made")
    told = sentence(ended, COMMITS)
    assert told.startswith("not sure: 5 tests were made (5 runs); perhaps ")
    assert "no culprit at all" in told
    for error, why in ((KeyboardInterrupt(), "it was ended by Ctrl-C"), (NoMoreTests("no farm"), "no farm")):
        assert search(Told(lambda at: at >= 2, error)).ended == why
    assert search(Told(lambda at: True), seconds=0.0).ended == "the budget of 0 s is spent"


def test_the_ends_must_be_testable():
    class Skips(Told):
        def run(self, positions):
            return [Answered(position=at, answer=Answer.SKIPPED, told="no") for at in positions]

    with pytest.raises(SettingsError, match="the bad commit cannot be tested, so that nothing can be told of it: no"):
        search(Skips(None))
