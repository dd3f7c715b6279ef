"""`pytest --farm` as a user types it: beside the same pytest without it, and where processes crash and hang."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path

import pytest

from dtf_lightning.clock import poll_until
from support.farm.suites import Suite, cases, shown
from support.farm.whole import DEADLINE, Farm

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[3]

MATRIX = """
    import sys, warnings
    import pytest

    @pytest.fixture(scope="module")
    def shared():
        yield []

    @pytest.fixture
    def broken():
        raise ValueError("in setup")

    @pytest.fixture
    def broken_behind():
        yield
        raise ValueError("in teardown")

    def test_passes(shared): print("shown by nobody")

    def test_fails(shared):
        print("to stdout"); print("to stderr", file=sys.stderr)
        found = {"a": [1, 2]}
        assert found == {"a": [1, 3]}

    def test_skips(): pytest.skip("not here")
    @pytest.mark.skipif(True, reason="never")
    def test_skipped(): pass
    @pytest.mark.xfail(reason="known")
    def test_xfails(): assert False
    @pytest.mark.xfail
    def test_xpasses(): pass
    @pytest.mark.xfail(strict=True, reason="must not")
    def test_xpasses_strictly(): pass
    @pytest.mark.parametrize("value", [1, "a b", "::[x]/ü"])
    def test_parameter(value): assert value != "a b"
    def test_error(broken): pass
    def test_error_behind(broken_behind): pass

    class CarefulWarning(UserWarning): pass

    def test_warns():
        warnings.warn("careful", CarefulWarning)
        warnings.warn("old", DeprecationWarning)

    def test_property(record_property): record_property("key", ("a", 1))

    class TestClass:
        def test_method(self): pass
"""


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory):
    """Processes, as `dtf farm up` starts them; its worker has two cores."""
    farm = Farm(tmp_path_factory.mktemp("farm"))
    yield farm
    farm.close()


@pytest.fixture
def suite(farm, tmp_path):
    return Suite(tmp_path / "suite", farm.url, Path(farm.token_file))


def test_a_matrix_as_if_it_had_run_here(suite):
    """Output, exit code, JUnit XML, and what `--lf` and `-x` make of it afterwards."""
    suite.write("test_matrix.py", MATRIX)
    code, here = suite.run("-ra", "-vv", "--junitxml=out.xml")
    (suite.folder / "out.xml").rename(suite.folder / "here.xml")
    farm_code, there = suite.run("-ra", "-vv", "--junitxml=out.xml", "--farm")
    assert shown(there).splitlines() == shown(here).splitlines()
    assert farm_code == code == 1
    assert "in 2 shards" in there
    assert cases(suite.folder / "out.xml") == cases(suite.folder / "here.xml")
    assert cases(suite.folder / "out.xml")[0] == ("15", "2", "3", "3")
    # Of what has failed on the farm, the next one here knows.
    code, last = suite.run("--lf", "-q", "-x", "-s", "--farm")
    here_code, here = suite.run("--lf", "-q", "-x", "-s")
    assert (code, shown(last)) == (here_code, shown(here))
    assert "stopping after 1 failures" in last


def test_who_ends_its_process_is_named(suite):
    """A crash and a hang fail the test that was running; what stands behind it runs elsewhere; what can run nowhere is skipped."""
    suite.write(
        "test_bad.py",
        """
        import os, signal, sys, threading
        import pytest

        def test_before(): pass
        def test_crash(): os._exit(3)
        def test_between(): pass
        def test_killed(): os.kill(os.getpid(), signal.SIGSEGV)
        @pytest.mark.farm(timeout=1)
        def test_hang(): threading.Event().wait()
        def test_behind(): pass
        @pytest.mark.farm(gpu=8)
        def test_large(): pass
        """,
    )
    code, told = suite.run("-v", "-rs", "--farm", "--farm-shards", "1")
    outcomes = [
        line.split()[:2] for line in told.splitlines() if line.startswith("test_bad.py::") and line.endswith("%]")
    ]
    assert outcomes == [
        [f"test_bad.py::test_{name}", outcome]
        for name, outcome in (
            ("before", "PASSED"),
            ("crash", "FAILED"),
            ("between", "PASSED"),
            ("killed", "FAILED"),
            ("hang", "FAILED"),
            ("behind", "PASSED"),
            ("large", "SKIPPED"),
        )
    ], told
    assert code == 1
    assert "crashed while running 'test_bad.py::test_crash' (exit code 3)" in told
    assert "crashed while running 'test_bad.py::test_killed' (ended by SIGSEGV)" in told
    assert "test_bad.py::test_hang took longer than 1 s on the worker" in told
    assert f'File "{suite.folder}/test_bad.py", line 9, in test_hang' in told
    assert "the farm's one worker cannot run it: it lacks 8 x gpu (it has 0)" in told


def test_ctrl_c(suite, farm, tmp_path):
    """Exit code 2, and nothing of the run goes on."""
    begun = tmp_path / "begun"
    suite.write(
        "test_long.py",
        f"""
        import pathlib, threading
        def test_long():
            pathlib.Path({str(begun)!r}).touch()
            threading.Event().wait()
        """,
    )
    with suite.begin("--farm") as process:
        poll_until(begun.exists, DEADLINE, "the test to begin")
        process.send_signal(signal.SIGINT)
        told, _ = process.communicate(timeout=DEADLINE)
    assert process.returncode == 2, told
    assert "KeyboardInterrupt" in told
    with farm.client() as client:
        (task,) = client.tasks(name="pytest test_long.py::test_long")
        assert client.wait(task.task_id, DEADLINE).status == "cancelled"


def test_what_a_test_ends_ends_the_run(suite):
    """Its message and exit code. Here the option stands in the settings file, which the workers have, too."""
    suite.write("pytest.ini", "[pytest]\naddopts = --farm --farm-shards=1")
    suite.write(
        "test_exit.py",
        """
        import pytest
        def test_1(): pass
        def test_2(): pytest.exit("enough", 7)
        def test_3(): pass
        """,
    )
    code, told = suite.run("-v")
    assert (code, "test_1 PASSED" in told, "enough" in told, "test_3" in told) == (7, True, True, False), told


def test_our_own_tests(suite):
    """Some of this project's, in a copy of it, whose modules are those that are tested: not those of the worker itself.

    And what one of them writes comes back, as far as it was asked for.
    """
    for name in ("src/dtf_lightning", "tests/support", "tests/farm/rules"):
        shutil.copytree(ROOT / name, suite.folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("tests/conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, suite.folder / name)
    (suite.folder / "pytest.ini").unlink()
    suite.write(
        "tests/test_where.py",
        """
        import pathlib
        import dtf_lightning

        def test_where():
            assert dtf_lightning.__file__ == str(pathlib.Path("src/dtf_lightning/__init__.py").absolute())
            for name in ("out/plots/1.txt", "out/2.txt", "not-asked-for.txt"):
                pathlib.Path(name).parent.mkdir(parents=True, exist_ok=True)
                pathlib.Path(name).write_text(name)
        """,
    )
    source = str(suite.folder / "src")
    chosen = [f"tests/farm/rules/test_{name}.py" for name in ("gangs", "health")]
    words = ("-q", "-p", "_hypothesis_pytestplugin", "tests/test_where.py", *chosen)
    code, told = suite.run("--farm", "--farm-artifacts=out", *words, PYTHONPATH=source)
    assert code == 0, told
    assert re.search(r"\b1[0-9] passed", told), told
    back = [path for path in suite.folder.rglob("*.txt") if "support" not in path.parts]
    assert sorted(path.relative_to(suite.folder).as_posix() for path in back) == ["out/2.txt", "out/plots/1.txt"]
    assert all(path.read_text() == path.relative_to(suite.folder).as_posix() for path in back)
