"""`pytest --farm` against a real coordinator and workers that the test plays: what they say, and what becomes of it here."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import pytest

from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.pytest_runs.worker_side import runner
from dtf_lightning.farm.pytest_runs.worker_side.start import SHARD
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.tokens import read_token
from support.farm.server import DEADLINE, CoordinatorInThread, PlayedWorker
from support.farm.suites import Suite

pytestmark = pytest.mark.process

HELLO = {
    "python": list(sys.version_info[:3]),
    "pytest": pytest.__version__,
    "plugins": {},
    "executable": "python",
    "top": "/w",
}


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory):
    """Gives a worker that goes up at once."""
    store = MemoryStore()
    folder = tmp_path_factory.mktemp("farm")
    coordinator = CoordinatorInThread(store, folder, settings={"health_monitor.worker_grace": 0.2})
    coordinator.loop.start_threads()
    yield coordinator
    coordinator.stop()
    store.close()


@pytest.fixture
def client(coordinator):
    with coordinator.client() as client:
        yield client


@pytest.fixture
def suite(coordinator, tmp_path):
    suite = Suite(tmp_path / "suite", coordinator.url, coordinator.token_file)
    suite.write("test_x.py", "\n".join(f"def test_{name}(): pass" for name in "abc"))
    return suite


class Player:
    """A worker that says of shards what the test wants."""

    def __init__(self, coordinator, name):
        self.worker = PlayedWorker((coordinator.url,), read_token(coordinator.token_file), name, session=name)
        self.worker.wait_until_welcome()

    def take(self, other_than=""):
        """The next shard, by the names of its tests; not one of this task, which the farm tries again until it is cancelled."""
        self.order = self.worker.next()
        while self.order.task == other_than:
            self.order = self.worker.next()
        digest = self.order.specification.inputs[SHARD].partition(":")[2]
        _, chunks = self.worker.connection.stream(f"/api/sources/{digest}")
        shard = json.loads(b"".join(chunks))
        self.worker.start(self.order)
        self._offset = 0
        return [nodeid.rpartition("_")[2] for nodeid in shard["nodeids"]]

    def say(self, kind, **fields):
        line = json.dumps({"kind": kind, **fields}).encode()
        data = runner.MARK + b"." + line + b"\n"
        self._offset = self.worker.write(self.order, self._offset, data)

    def print(self, text):
        self._offset = self.worker.write(self.order, self._offset, text)

    def passes(self, at, nodeid, *, fails=False):
        self.say("start", at=at)
        for when in ("setup", "call", "teardown"):
            failed = fails and when == "call"
            ended, why = ("failed", "no") if failed else ("passed", None)
            report = pytest.TestReport(nodeid, ("test_x.py", 0, ""), {}, ended, why, when)
            self.say("report", at=at, data=runner.packed({**report._to_json(), "$report_type": "TestReport"}))
        self.say("finish", at=at, seconds=0.1, stop=False, fail=False)

    def end(self, **fields):
        self.worker.end(self.order, **fields)

    def close(self):
        self.worker.close()


@pytest.fixture
def players(coordinator):
    with contextlib.ExitStack() as stack:

        def player(name):
            made = Player(coordinator, name)
            stack.callback(made.close)
            return made

        yield player


def outcome(process):
    told, _ = process.communicate(timeout=DEADLINE)
    return process.returncode, told


def test_a_lost_worker(suite, players, coordinator):
    """What it had not finished runs elsewhere, the test that ran then first and by itself; what it had finished does not."""
    first = players("first")
    with suite.begin("--farm", "--farm-shards", "1", "-v") as process:
        assert first.take() == ["a", "b", "c"]
        first.say("hello", **HELLO)
        first.passes(0, "test_x.py::test_a")
        first.say("start", at=1)
        first.worker.hold_off()
        second = players("second")
        for expected in (["b"], ["c"]):
            assert second.take(first.order.task) == expected
            second.say("hello", **HELLO)
            second.passes(0, f"test_x.py::test_{expected[0]}")
            second.say("done")
            second.end()
        code, told = outcome(process)
    assert (code, told.count("PASSED")) == (0, 3), told


def test_in_quarantine(suite, players, client):
    """A failure is shown as one that was expected, and counts for nothing; a pass is a pass; behind its end it counts, and that is said."""
    for test, seconds in (("a", 1000.0), ("b", 1000.0), ("c", 1e-6)):
        client.put_into_quarantine("default", f"test_x.py::test_{test}", owner="ada", reason="#7", seconds=seconds)
    player = players("w")
    for options, failing in ((["-x", "-rx", "--junitxml=o.xml"], "a"), ([], "ac")):
        with suite.begin("--farm", "--farm-shards", "1", *options) as process:
            assert player.take() == ["a", "b", "c"]
            player.say("hello", **HELLO)
            for at, name in enumerate("abc"):
                player.passes(at, f"test_x.py::test_{name}", fails=name in failing)
            player.say("done")
            player.end()
            code, told = outcome(process)
        assert (code, "1 xfailed" in told) == (len(failing) - 1, True), told
        assert "test_x.py::test_a has failed, which does not count: in quarantine until " in told
        assert ("test_x.py::test_c counts again: its quarantine has expired on " in told) is ("c" in failing)
    assert 'type="pytest.xfail"' in (suite.folder / "o.xml").read_text()


def test_a_worker_that_is_lost_before_it_began(suite, players):
    """The farm tries the same task again, and counts for how many workers."""
    first = players("first")
    with suite.begin("--farm", "--farm-shards", "1", "-q") as process:
        first.take()
        first.say("hello", **HELLO)
        first.worker.hold_off()
        second = players("second")
        assert second.take() == ["a", "b", "c"]
        assert second.order.task == first.order.task
        second.say("hello", **HELLO)
        for at, name in enumerate("abc"):
            second.passes(at, f"test_x.py::test_{name}")
        second.end()
        code, told = outcome(process)
    assert (code, "3 passed" in told) == (0, True), told


@pytest.mark.parametrize(
    ("says", "told"),
    [
        (
            {"kind": "hello", **HELLO, "python": [3, 2, 1]},
            ["the worker 'w' has 3.2.1 (python)", "collected by Python 3."],
        ),
        (
            {
                "kind": "mismatch",
                "missing": ["test_x.py::test_b"],
                "num_missing": 1,
                "num_found": 2,
                "errors": "no module x",
            },
            [
                "does not find 1 of the tests that were collected here",
                "  test_x.py::test_b",
                "no module x",
                sys.executable,
            ],
        ),
        (b"No module named pytest\n", ["the worker 'w' could not run tests (exit code 1)", "No module named pytest"]),
    ],
    ids=["another-python", "mismatch", "no-pytest"],
)
def test_what_a_worker_cannot_do(suite, players, says, told):
    """One message, which names both sides; exit code 4; nothing is tried again."""
    player = players("w")
    with suite.begin("--farm", "--farm-shards", "1") as process:
        player.take()
        if isinstance(says, bytes):
            player.print(says)
        else:
            if says["kind"] != "hello":
                player.say("hello", **HELLO)
            player.say(**says)
        player.end(kind=OutcomeKind.FAILED, reason="exit code 1")
        code, output = outcome(process)
    assert code == 4, output
    assert [part for part in told if part not in output] == [], output


def test_other_packages_are_warned_of(suite, players):
    """Once, by their names, among pytest's warnings."""
    player = players("w")
    with suite.begin("--farm", "--farm-shards", "1") as process:
        player.take()
        player.say("hello", **{**HELLO, "plugins": {"pytest-odd": "1.2"}})
        for at, name in enumerate("abc"):
            player.passes(at, f"test_x.py::test_{name}")
        player.say("done")
        player.end()
        code, output = outcome(process)
    assert code == 0, output
    assert "pytest-odd none here, 1.2 there" in " ".join(output.split())


def test_internal_errors_come_back(suite, players):
    """A plugin that fails there fails the run here, as it would here."""
    player = players("w")
    with suite.begin("--farm", "--farm-shards", "1") as process:
        player.take()
        player.say("hello", **HELLO)
        player.say("start", at=0)
        player.say("internal", at=0, text="a plugin is broken")
        player.end(kind=OutcomeKind.FAILED, reason="exit code 3")
        code, output = outcome(process)
    assert code == 3, output
    assert "a plugin is broken" in output


def test_a_task_that_somebody_cancels(suite, players, coordinator):
    """Ends the run, with the reason."""
    player = players("w")
    with suite.begin("--farm", "--farm-shards", "1") as process:
        player.take()
        with coordinator.client() as client:
            client.cancel(player.order.task, "somebody needs the worker")
        code, output = outcome(process)
    assert code == 2, output
    assert "was cancelled: somebody needs the worker" in output


def test_a_farm_without_workers(suite):
    code, output = suite.run("--farm")
    assert code == 4
    assert "the farm has no workers" in output


def test_where_it_runs(suite, players):
    """The task has the tests' folder, variables, project and needs."""
    player = players("w")
    (suite.folder / "inner").mkdir()
    with suite.begin("--farm", "--farm-env=A=b", "--farm-timeout=9", "-k", "test_a") as process:
        player.take()
        specification = player.order.specification
        assert specification.environment["A"] == "b"
        assert (specification.name, dict(specification.needs[0].amounts)) == ("pytest test_x.py::test_a", {"cpu": 1.0})
        assert specification.source
        player.end(kind=OutcomeKind.FAILED)
        assert outcome(process)[0] == 4
    assert Path(suite.folder, "test_x.py").exists()
