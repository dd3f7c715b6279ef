"""`dtf farm compare` with real processes and real commits."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dtf_lightning import environment
from dtf_lightning.__main__ import main
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.compare.measuring import RunFailed, run_once
from dtf_lightning.farm.compare.programs import Program, two_commands, two_commits

pytestmark = pytest.mark.process


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv(environment.FARM_HOME, str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home"


def test_a_farms_mark_stays(tmp_path, monkeypatch):
    """By it the farm's keeper finds, and ends, what an attempt has started; the folder for reports is the run's own."""
    monkeypatch.setenv("DTF_FARM_MARK", "7")
    monkeypatch.setenv(environment.FARM_RESULTS, str(tmp_path))
    line = """printf '{"mark": %s}' $DTF_FARM_MARK > $DTF_FARM_RESULTS/told.jsonl"""
    assert run_once(program(tmp_path, line), timeout=60).metrics["mark"] == 7
    assert not list(tmp_path.iterdir())


def reporting(value: str) -> str:
    """A shell line that reports a latency."""
    return f"""printf '{{"latency": %s}}\\n' {value} > $DTF_FARM_RESULTS/told.jsonl"""


def program(tmp_path: Path, line: str) -> Program:
    return two_commands(line, line, tmp_path)[0]


def test_one_run(tmp_path):
    """Its time, its processors' time with its children's, and what it reports."""
    run = run_once(program(tmp_path, reporting("7.5")), timeout=60)
    assert run.metrics["latency"] == 7.5
    assert 0 < run.metrics["time"] < 60
    assert 0 < run.metrics["cpu"] < 60
    assert run.process != run_once(program(tmp_path, "true"), timeout=60).process


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("echo so far; exit 3", r"ended with exit code 3; its output ends:\nso far"),
        ("kill -9 $$", "ended by signal 9 and wrote nothing"),
        ("sleep 60 & sleep 60", "did not end within 0.2 s"),
    ],
)
def test_runs_that_fail(tmp_path, line, message):
    """With the end of their output; one that hangs is ended with its children."""
    with pytest.raises(RunFailed, match=message):
        run_once(program(tmp_path, line), timeout=0.2 if "sleep" in line else 60)


def test_what_a_run_leaves_in_the_background_ends_with_it(tmp_path):
    """It would disturb the next run. The police looks for it."""
    run_once(program(tmp_path, "sleep 600 & true"), timeout=60)


def test_a_program_that_is_not_there(tmp_path):
    with pytest.raises(RunFailed, match="cannot be started: No such file"):
        run_once(Program(named="x", command=(str(tmp_path / "none"),), folder=tmp_path), timeout=60)


def test_a_comparison_by_hand(home, capsys):
    """What a user types: sentence, table, exit code; JSON; the list; the replay."""
    same = [reporting("20"), reporting("20.01")]
    assert main(["farm", "compare", *same, "--metric", "latency:ms"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(
        "latency: the same: no change of 3 % or more (95 % sure); between 0.05 % and 0.05 % slower; 10 pairs"
    )
    assert "METRIC   VERDICT" in told
    assert main(["farm", "compare", "--json", reporting("20"), reporting("21"), "--metric", "latency:ms"]) == 1
    (shown,) = json.loads(capsys.readouterr().out)["verdicts"]
    assert shown["verdict"]["state"] == "slower"
    assert len(shown["comparison"]["samples"]) == 20
    assert main(["farm", "compare", reporting("20"), reporting("20"), "--metric", "latency:ms", "--budget", "1ms"]) == 3
    assert "could not tell: the budget of 0.001 s is spent; 0 pairs" in capsys.readouterr().out
    assert main(["farm", "verdict", "replay", shown["id"]]) == 0
    assert capsys.readouterr().out == f"{shown['sentence']}\nrecomputed from 20 samples: every bit is the same\n"
    assert main(["farm", "verdict", "list", "--json"]) == 0
    assert [row["state"] for row in json.loads(capsys.readouterr().out)] == ["gave up", "slower", "same"]
    assert [path.name for path in home.iterdir()] == ["verdicts.duckdb"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "got nothing to compare; expected two commands"),
        (["true"], "got true; expected two commands"),
        (["true", "true", "--"], "there is no command behind --"),
        (["true", "true", "--bugdet", "3s"], "got --bugdet"),
        (["true", "true", "--setup", "make"], "--setup builds two commits"),
        (["true", " "], "a command is empty"),
        (["true", "true", "--metric", "latency"], "'latency' has no unit"),
        (["true", "true", "--metric", "time", "--metric", "time:ms"], "a metric is asked for twice"),
        (["true", "true", "--metric", "latency:ms"], "the base reported no metric 'latency'"),
        (["true", "true", "--budget", "soon"], "--budget soon: expected seconds, or a text such as 60s"),
        (["true", "true", "--pairs", "5"], "5 pairs are asked for; expected 10"),
        (["true", "true", "--pairs", "x"], "argument --pairs: invalid int value"),
        (["true", "true", "--warm-up", "-1"], "--warm-up -1: expected 0 or more"),
        (["true", "exit 4"], "there is nothing to compare: exit 4 ended with exit code 4"),
        (["a", "b", "--", "true"], "belongs to no git repository"),
    ],
)
def test_bad_input_is_exit_code_2(home, capsys, arguments, message):
    assert main(["farm", "compare", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not home.exists()


# --- commits ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path):
    """Three commits, of which `slow` reports more, and `broken` cannot be built."""

    def git(*arguments):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)

    folder = tmp_path / "repository"
    (folder / "inner").mkdir(parents=True)
    git("init", "-q", "-b", "main")
    for branch, value in (("main", "20"), ("slow", "25"), ("broken", "0")):
        if branch != "main":
            git("checkout", "-q", "-b", branch)
        (folder / "inner" / "value").write_text(value)
        git("add", ".")
        git("commit", "-q", "-m", branch)
    git("checkout", "-q", "main")
    return folder


def worktrees(folder: Path) -> int:
    listed = subprocess.run(["git", "worktree", "list"], cwd=folder, check=True, capture_output=True).stdout
    return len(listed.splitlines())


BENCH = reporting("$(cat built)")
SETUP = "grep -v '^0' value > built"


def test_two_commits(home, repository, monkeypatch, capsys):
    """Each is checked out and set up beside the other, below the same folder; nothing of it is left."""
    monkeypatch.chdir(repository / "inner")
    setup = f"{SETUP} && cp $(command -v sh) here"  # a program of each commit's own, by its relative path
    arguments = ["main", "slow", "--metric", "latency:ms", "--setup", setup, "--", "./here", "-c", BENCH]
    assert main(["farm", "compare", *arguments]) == 1
    assert "latency: worse" not in (told := capsys.readouterr().out)
    assert told.startswith("latency: slower by 25.0 %")
    assert worktrees(repository) == 1
    assert (repository / "inner" / "value").read_text() == "20"
    assert not (repository / "inner" / "built").exists()
    assert main(["farm", "verdict", "list"]) == 0
    assert "slow (" in capsys.readouterr().out


def test_commits_that_cannot_be_compared(repository, monkeypatch):
    """A base that cannot be built, with its output; an unknown name; a folder that one of them does not have."""
    folder = repository / "inner"

    def enter(base, candidate, folder=folder, setup=None, patience=60):
        with two_commits(base, candidate, ["true"], folder, setup=setup, patience=patience):
            pass

    with pytest.raises(SettingsError, match=r"the base broken cannot be built: .* ended with exit code 1"):
        enter("broken", "main", setup=SETUP)
    with pytest.raises(SettingsError, match=r"'none' is no commit, branch or tag of .*leave out what stands behind --"):
        enter("none", "main")
    (repository / "new").mkdir()
    with pytest.raises(SettingsError, match="main has no folder new"):
        enter("main", "slow", folder=repository / "new")
    with pytest.raises(SettingsError, match="did not end within"):
        enter("main", "slow", setup="sleep 60 & sleep 60", patience=0.2)
    assert worktrees(repository) == 1


# --- how often it is right --------------------------------------------------------------------------------------------


@pytest.mark.chaos
def test_real_processes_under_changing_load(tmp_path):
    """30 comparisons of a real program, half with itself and half with one that works half as long again, while loads come and
    go: at most two are wrong, and most of the longer ones are found. On a crowded machine few of the others are decided
    within the budget; those are told as too noisy or given up."""
    from dtf_lightning.clock import SystemClock
    from dtf_lightning.farm.compare.session import compare
    from dtf_lightning.farm.verdicts.metrics import Metric
    from dtf_lightning.farm.verdicts.pairs.plan import Plan, Side
    from dtf_lightning.farm.verdicts.pairs.verdict import State

    def work(loops: int) -> Program:
        code = f"for _ in range({loops}): sum(range(1000))"
        return Program(named=code, command=(sys.executable, "-S", "-E", "-c", code), folder=tmp_path)

    over = threading.Event()

    def load() -> None:
        burn = [sys.executable, "-c", "import time\nend = time.time() + 1.5\nwhile time.time() < end: pass"]
        while not over.wait(1.0):
            subprocess.run(burn, check=True)

    loading = threading.Thread(target=load)
    loading.start()
    wrong = found = 0
    try:
        for trial in range(30):
            longer = trial % 2
            programs = {Side.BASE: work(1500), Side.CANDIDATE: work(2250 if longer else 1500)}
            outcome = compare(
                lambda side, programs=programs: run_once(programs[side], timeout=60),
                [Metric.parse("cpu")], Plan(), seed=str(trial), budget=15.0, clock=SystemClock(),
            )  # fmt: skip
            state = outcome.compared[0].verdict.state
            found += bool(longer) and state is State.SLOWER
            wrong += state in ({State.SAME, State.FASTER} if longer else {State.SLOWER, State.FASTER})
    finally:
        over.set()
        loading.join()
    assert wrong <= 2
    assert found >= 10
