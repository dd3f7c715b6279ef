"""The plugin in a pytest of its own: what it leaves alone, and what it refuses before a farm is asked."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

import pytest

from dtf_lightning import environment
from dtf_lightning.farm.pytest_runs import options
from support.farm.suites import PLUGIN

ROOT = Path(__file__).parents[3]


@pytest.fixture
def run(pytester, monkeypatch, tmp_path):
    """pytest over one file of tests, in this process, where no farm is known."""
    for name in (environment.FARM_URL, environment.FARM_TOKEN_FILE, "PYTEST_ADDOPTS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(environment.FARM_HOME, str(tmp_path / "home"))
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(text, *arguments):
        pytester.makepyfile(test_x=text)
        return pytester.runpytest_inprocess("-p", PLUGIN, "-p", "no:cacheprovider", *arguments)

    return run


def test_without_the_option_nothing_changes(run):
    """But the mark is known, also to --strict-markers."""
    done = run("import pytest\n@pytest.mark.farm(gpu=1)\ndef test_1(): pass", "--strict-markers")
    assert (done.ret, done.parseoutcomes()) == (0, {"passed": 1})


def test_no_farm(run):
    """One message with what to do, and exit code 4."""
    done = run("def test_1(): pass", "--farm")
    assert done.ret == 4
    assert "dtf farm up" in done.stderr.str()
    assert "--farm-url URL" in done.stderr.str()


def test_an_error_in_collection_needs_no_farm(run):
    """It ends the run as it does here."""
    done = run("import nothing_of_this_name", "--farm")
    assert done.ret == 2
    done.stdout.fnmatch_lines(["*1 error during collection*"])


@pytest.mark.parametrize("arguments", [("--collect-only",), ("-k", "nothing")])
def test_what_runs_no_test_needs_no_farm(run, arguments):
    assert run("def test_1(): pass", "--farm", *arguments).ret in (0, 5)


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--pdb", "--pdb needs the tests to run here"),
        ("--setup-show", "--setup-show needs the tests to run here"),
        ("--farm-shards=0", "expected a number above 0"),
        ("--farm-timeout=-1", "expected a number above 0"),
        ("--farm-env=DTF_NO_SUCH_VARIABLE", "there is no such variable here"),
    ],
)
def test_what_cannot_be(run, argument, told):
    done = run("def test_1(): pass", "--farm", argument)
    assert done.ret == 4
    assert told in done.stderr.str()


def test_what_needs_the_tests_here(pytestconfig):
    """pytest-cov, by the name of its option: it need not be installed."""

    class Config:
        class option:  # noqa: N801
            cov_source = ("src",)
            no_cov = False

    with pytest.raises(pytest.UsageError, match="--no-cov"):
        options.refuse_local_only(Config)
    Config.option.no_cov = True
    options.refuse_local_only(Config)


def test_xdist_starts_no_process(run):
    """What `-n` says is the number of shards; that no farm is known is found by this process."""
    done = run("def test_1(): pass", "-p", "xdist", "-n", "3", "--farm")
    assert done.ret == 4
    assert "workers" not in done.stdout.str()
    assert "dtf farm up" in done.stderr.str()


@pytest.fixture
def known(run, monkeypatch):
    """A farm that is known, and not there: who asks it fails only after seconds, and says another thing."""
    monkeypatch.setenv(environment.FARM_URL, "http://127.0.0.1:9")
    token = Path("token")
    token.write_text("secret")
    token.chmod(0o600)
    monkeypatch.setenv(environment.FARM_TOKEN_FILE, str(token.absolute()))


def test_a_repository_without_a_lock_file(run, known):
    """Where the workers' environments are to be made of one."""
    done = run("def test_1(): pass", "--farm", "--farm-python", "uv run --frozen python")
    assert done.ret == 4
    assert "there is none in" in done.stderr.str()
    assert "`uv lock` makes it" in done.stderr.str()


def test_a_mark_that_cannot_be(run, known):
    """Is refused by the test's name."""
    done = run("import pytest\n@pytest.mark.farm(gpus=1)\ndef test_1(): pass", "--farm")
    assert done.ret == 4
    assert "test_x.py::test_1: @pytest.mark.farm does not know 'gpus': did you mean 'gpu'?" in done.stderr.str()


def test_the_entry_point_has_its_modules_name():
    """So that `-p NAME` and an installed package are one plugin."""
    points = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["pytest11"]
    assert points == {PLUGIN: PLUGIN}
    assert options.PLUGIN == PLUGIN
    assert PLUGIN in sys.modules or __import__(PLUGIN)
