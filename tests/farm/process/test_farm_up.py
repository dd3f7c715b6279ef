"""A newcomer's farm: `dtf farm up` and what is typed beside it, with real processes; and what happens when they die."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.etcd.server.embedded import find_etcd
from dtf_lightning.etcd.wire.version import version_advice
from support.farm.whole import DEADLINE, Farm
from support.pages import blocks

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory):
    farm = Farm(tmp_path_factory.mktemp("farm"), "--allow-pickle")
    yield farm
    farm.close()


def test_as_if_here(farm):
    """Its files, its output to the byte, its exit code."""
    (farm.project / "inner").mkdir()
    (farm.project / "inner" / "script.py").write_text(
        "import pathlib, sys\nsys.stdout.buffer.write(pathlib.Path('../data.bin').read_bytes())\nsys.exit(7)\n"
    )
    data = bytes(range(256)) * 4
    (farm.project / "data.bin").write_bytes(data)
    subprocess.run(["git", "init", "-q"], cwd=farm.project, check=True)
    done = farm.dtf("run", "--", "python", "script.py", cwd=farm.project / "inner")
    assert (done.stdout, done.returncode) == (data, 7)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--", "true"], 0, b""),
        (["--", "sh", "-c", "kill -SEGV $$"], 139, b"ended by SIGSEGV"),
        (["--", "no-such-program"], 127, b"No such file or directory"),
        (["--timeout", "0.2", "--", "sleep", "60"], 124, b"ended by its timeout"),
        (["--env", "A=b", "--", "sh", "-c", "test $A = b"], 0, b""),
        ([], 2, b"nothing to run"),
        (["--needs", "cpu=x", "--", "true"], 2, b"expected RESOURCE=AMOUNT"),
    ],
    ids=["true", "signal", "no-program", "timeout", "env", "nothing", "bad-needs"],
)
def test_exit_codes(farm, arguments, code, told):
    done = farm.dtf("run", "--no-source", *arguments)
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_version_of_etcd_with_defects_is_warned_of(farm):
    """One line for each defect, with what to do. The etcd of the tests is 3.5.1."""
    version = find_etcd().version
    poll_until(lambda: "Ctrl-C ends it" in farm.log.read_text(), DEADLINE, "what the farm says when it is up")
    warnings = [line for line in farm.log.read_text().splitlines() if line.startswith("warning: etcd")]
    assert warnings == [f"warning: etcd {version}: {told}; {remedy}" for told, remedy in version_advice(version)]


def test_a_plan(farm):
    """The example, with real processes."""
    done = farm.dtf("run", "--no-source", str(Path(__file__).parents[3] / "examples" / "plan.yaml"))
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.decode().partition("TASK ")[2].splitlines()[1:]]
    assert [row[0] for row in rows] == [
        "numbers",
        *(f"squares[{number},{power}]" for number, power in ((2, 2), (2, 3), (3, 2), (3, 3), (4, 2))),
        "clean-up",
    ]
    assert {row[1] for row in rows} == {"completed"}


def test_calls_in_a_plan(farm, tmp_path):
    """By import of a module that came along, in the worker's own Python; the value, the reason and the output."""
    (tmp_path / "app.py").write_text(
        "import sys\n"
        "def where(name):\n    print('hello')\n    return [name, sys.executable]\n"
        "def fails():\n    raise ValueError('no such file')\n"
    )
    (tmp_path / "plan.yaml").write_text(
        "tasks:\n  where: {call: 'app:where', kwargs: {name: x}}\n  fails: {call: 'app:fails', after: where}\n"
    )
    done = farm.dtf("run", "--json", "plan.yaml", cwd=tmp_path)
    where, fails = sorted(json.loads(done.stdout)["tasks"], key=lambda task: str(task["name"]), reverse=True)
    assert where["results"]["returned"] == {"value": ["x", sys.executable]}, where
    assert (fails["status"], fails["error"], done.returncode) == ("failed", "ValueError: no such file; exit code 1", 1)
    with farm.client() as client:
        assert b"".join(client.logs(where["task_id"])) == b"hello\n"
        assert b"app.py" in b"".join(client.logs(fails["task_id"]))


def test_functions(farm):
    """Closures, values that are no JSON, what is printed, and an exception with its traceback from there."""
    base = 10

    def add(number, *, by=0):
        sys.stdout.write(f"adding {number}\n")
        return {number: base + by}  # JSON has no numbers as names

    def fails(number):
        raise KeyError(number)

    with farm.client() as client:
        one, *more = [client.submit(add, 1, by=2), *client.map(add, range(2), by=1), client.submit(fails, 5)]
        assert one.result(DEADLINE) == {1: 12}
        assert b"".join(client.logs(one.task_id)) == b"adding 1\n"
        assert client.results(more[:2], timeout=DEADLINE) == [{0: 11}, {1: 11}]
        with pytest.raises(KeyError) as caught:
            more[2].result(DEADLINE)
        assert caught.value.args == (5,)
        assert "in fails" in str(caught.value.__cause__)
        assert client.task(more[2].task_id).reason == "KeyError: 5; exit code 1"


def test_the_docs_functions(farm):
    """What docs/farm.md shows of functions, and of an event loop, typed."""
    _, functions, on_a_loop = blocks("docs/farm.md", "python", "## From Python")
    (farm.project / "functions.py").write_text(f"{functions}\n{on_a_loop}")
    done = subprocess.run(
        [sys.executable, "functions.py"],
        cwd=farm.project,
        env={**os.environ, "DTF_FARM_HOME": str(farm.home.folder)},
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    energy = [sum((seed * step) % 7 for step in range(100)) for seed in range(10)]
    told = done.stdout.splitlines()
    assert told[0] == str(energy[1])
    assert sorted(told[1:11]) == [f"simulate {seed}" for seed in range(10)]
    assert told[11:14] == [f"10 0 {max(energy)}", "3", str(energy[0])]
    assert sorted(told[14:18]) == sorted(f"simulate {one}" for one in energy[1:5])
    assert told[18:] == [str(sum(energy[:5]))]


def test_ctrl_c_cancels(farm):
    with farm.begin("run", "--no-source", "--", "sh", "-c", "echo $$; exec sleep 600") as process:
        pid = int(process.stdout.readline())
        assert psutil.pid_exists(pid)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=DEADLINE)
    assert process.returncode == 130, err
    poll_until(lambda: not psutil.pid_exists(pid), DEADLINE, "the task's process to end")
    assert b"is cancelled" in err


def test_its_page(farm):
    """`up` and `sign-in` print links, each of which signs a browser in once."""
    links = re.findall(r"http://\S+/sign-in\?code=\S+", farm.log.read_text() + farm.dtf("sign-in").stdout.decode())
    assert len(links) == 2
    for link in links:
        with urllib.request.urlopen(link, timeout=DEADLINE) as answer:
            assert "HttpOnly" in answer.headers["Set-Cookie"]
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(link, timeout=DEADLINE)


def test_what_a_task_leaves(farm):
    """Reports and files that match its patterns, from the worker's disk to the farm's store and to a folder."""
    script = "echo raw > out.bin; echo '<testsuite><testcase/></testsuite>' > $DTF_FARM_RESULTS/junit.xml"
    with farm.client() as client:
        task = client.submit(["sh", "-c", script], artifacts=["*.bin", "*.none"])
        results = client.wait(task, DEADLINE).raw["results"]
    assert results["counts"]["passed"] == 1
    assert set(results["artifacts"]) == {"out.bin", "junit.xml"}
    copies = farm.project / "copies"
    done = farm.dtf("artifacts", task, "--to", str(copies))
    assert done.returncode == 0, done.stderr
    assert b"out.bin" in done.stdout
    assert (copies / "out.bin").read_text() == "raw\n"
    assert (copies / "junit.xml").exists()
    assert [one["size"] for one in farm.json("artifacts", task)["artifacts"]] == [35, 4]
    assert farm.dtf("artifacts", "00000000-0000-0000-0000-000000000000").returncode == 1


def test_what_there_is_to_see(farm):
    task = submit(farm, "--name", "hello", "--", "echo", "hi")
    with farm.client() as client:
        assert client.wait(task, DEADLINE).status == "completed"
    assert farm.dtf("logs", task).stdout == b"hi\n"
    assert b"hello" in farm.dtf("tasks").stdout
    (shown,) = (one for one in farm.json("tasks") if one["task_id"] == task)
    assert shown["status"] == "completed"
    assert b"completed" in farm.dtf("task", task).stdout
    poll_until(
        lambda: [one["status"] for one in farm.json("workers")] == ["online"], DEADLINE, "the worker to be online"
    )
    (worker,) = farm.json("workers")
    assert worker["capabilities"]["devices"]["cpu"] >= 1
    assert farm.json("status")["workers"] == 1
    assert farm.dtf("cancel", task).returncode == 1
    named = [f"coordinator {farm.url}", "etcd", "home", "token", "clock"]

    def well() -> dict | bool:
        found = {finding["what"]: finding for finding in json.loads(farm.dtf("doctor", "--json").stdout)}
        return all(found.get(what, {}).get("level") == "ok" for what in named) and found

    # On a busy machine it is right to find that something does not answer.
    found = poll_until(well, DEADLINE, "all to be well")
    assert found["etcd"]["told"] == "1 of 1 members answer"


def test_a_backup_while_it_runs(farm, tmp_path):
    """Its coordinator tells where its etcd is, once it has looked at it."""
    path = tmp_path / "backup"
    poll_until(
        lambda: farm.dtf("backup", str(path), "--home", str(farm.home.folder)).returncode == 0, DEADLINE, "a backup"
    )
    assert json.loads(farm.dtf("restore", str(path), "--check", "--json").stdout)["farm"] == "farm"
    assert farm.dtf("restore", str(path), "--home", str(farm.home.folder)).returncode == 2


def test_a_second_one_is_refused(farm):
    done = farm.dtf("up", "--port", "0")
    assert done.returncode == 2
    assert f"a farm runs here already, at {farm.url}".encode() in done.stderr
    port = farm.url.rpartition(":")[2]
    done = farm.dtf("up", "--port", port, "--home", str(farm.home.folder.parent / "other"))
    assert done.returncode == 1  # a part of it says so
    assert f"port {port} of 127.0.0.1 is taken".encode() in done.stderr


def test_no_farm(farm):
    done = farm.dtf("run", "--", "true", DTF_FARM_HOME=str(farm.home.folder.parent / "nowhere"))
    assert done.returncode == 75
    assert b"start one with `dtf farm up`" in done.stderr


def submit(farm, *arguments):
    done = farm.dtf("submit", "--no-source", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode().strip()


def held(farm, name):
    """A task that ends when the test says so, a way to say so, and a file with a line for each time that it ran."""
    gate = farm.project / f"{name}.gate"
    started = farm.project / f"{name}.started"
    os.mkfifo(gate)
    task = submit(farm, "--", "sh", "-c", f"echo $$ >> {started}; read word < {gate}; echo done; exit 3")
    poll_until(started.exists, DEADLINE, "the task to start")
    return task, lambda: gate.write_text("go\n"), started


def check_ran_once(farm, task, started):
    with farm.client() as client:
        info = client.wait(task, DEADLINE)
        assert (info.status, info.exit_code, info.raw["metadata"]["attempt"]) == ("failed", 3, 1)
        assert b"".join(client.logs(task)) == b"done\n"
    assert len(started.read_text().split()) == 1, "it ran twice"


def test_what_dies_is_started_again(tmp_path):
    """Coordinator, worker, and in the end all at once; what was accepted is not lost, and nothing is left behind."""
    farm = Farm(tmp_path)
    try:
        # A task that runs goes on; its result, which came meanwhile, is recorded once somebody can.
        task, go, started = held(farm, "coordinator")
        before = farm.part("coordinator")
        before.kill()
        go()
        check_ran_once(farm, task, started)
        assert farm.part("coordinator").pid != before.pid

        # The worker's attempts have another parent: the worker that is started in its place finds them.
        task, go, started = held(farm, "worker")
        before = farm.part("worker")
        before.kill()
        poll_until(lambda: farm.part("worker").pid != before.pid, DEADLINE, "another worker")
        go()
        check_ran_once(farm, task, started)

        # Everything at once, as where the power fails.
        task, go, started = held(farm, "all")
        waiting = submit(farm, "--after", task, "--", "true")
        farm.kill()
        poll_until(lambda: not farm.processes(), DEADLINE, "the farm's processes to end")
        assert b"the farm that ran here has ended without a word" in farm.dtf("task", task).stderr
        farm.start()
        with farm.client() as client:
            poll_until(lambda: len(started.read_text().split()) == 2, DEADLINE, "the task to run again")
            assert client.task(task).raw["metadata"]["attempt"] >= 2
            assert client.task(waiting).status == "waiting"
            go()
            assert client.wait(task, DEADLINE).status == "failed"
            assert client.wait(waiting, DEADLINE).status == "skipped"

        # The orderly way, with a task that runs.
        held(farm, "down")
        assert b"farm ended" in farm.dtf("down").stdout
        assert farm.process.wait(DEADLINE) == 0
        poll_until(lambda: not farm.processes(), DEADLINE, lambda: f"these to end: {farm.processes()}")
        done = farm.dtf("down")
        assert (done.returncode, b"no farm runs here" in done.stdout) == (1, True)
    finally:
        farm.close()
