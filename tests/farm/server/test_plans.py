"""Plans through a real coordinator: how they are followed, cancelled, and shown by `dtf farm run PLAN.yaml`."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.errors import DtfError
from dtf_lightning.farm import client as client_module
from dtf_lightning.farm.messages import Run
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.server import pool
from dtf_lightning.farm.server import tasks as tasks_module
from support.farm.server import DEADLINE

pytestmark = pytest.mark.process

PLAN = """
name: p
tasks:
  build: {run: b}
  test:
    run: "t {{matrix.n}}"
    after: build
    matrix: {n: [1, 2]}
  package: {run: p, after: test}
  clean: {run: c, after: {test: any}}
"""


class Player:
    """Ends what a played worker is told to run, in a thread of its own, as the test's function says."""

    def __init__(self, worker, play: Callable[[Run], None]) -> None:
        self._worker, self._play = worker, play
        self._over = threading.Event()
        self.problem: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Player:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._worker.orders.put(None)
        self._thread.join(DEADLINE)
        assert self.problem is None

    def _run(self) -> None:
        try:
            while not self._over.is_set():
                if (order := self._worker.orders.get(timeout=DEADLINE)) is not None:
                    self._play(order)
        except BaseException as problem:  # shown by the test's own thread
            self.problem = problem


@pytest.fixture
def dtf(coordinator, tmp_path, monkeypatch):
    """Runs `dtf farm ...` in this process."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "plan.yaml").write_text(PLAN)

    def run(*arguments: str) -> int:
        where = ["--farm", coordinator.url, "--token-file", str(coordinator.token_file)]
        return main(["farm", arguments[0], *where, *arguments[1:]])

    return run


def submit(client, plan: str, number: int) -> list[str]:
    requests = [{"task_id": new_task_id(time.time()), "command": ["x"], "plan": plan} for _ in range(number)]
    return [told["task_id"] for told in client.submit_all(requests)]


class TestFollowing:
    def test_as_they_end(self, client, worker):
        tasks = submit(client, "p", 4)
        submit(client, "another", 1)
        ended = []
        with Player(worker, worker.end):
            ended += client.plan_ends("p", tasks)
        assert sorted(info.task_id for info in ended) == sorted(tasks)
        assert {info.status for info in ended} == {"completed"}

    def test_those_that_had_ended_before(self, client, worker):
        tasks = submit(client, "p", 2)
        for _ in tasks:
            worker.end(worker.next())
        for task in tasks:
            client.wait(task, DEADLINE)
        assert {info.task_id for info in client.plan_ends("p", tasks)} == set(tasks)

    def test_one_request_for_many(self, client, worker, monkeypatch):
        """Nobody asks for a task at a time."""
        tasks = submit(client, "p", 20)
        paths = []
        ask = client.connection.ask
        monkeypatch.setattr(
            client.connection, "ask", lambda method, path, *a, **f: (paths.append(path), ask(method, path, *a, **f))[1]
        )
        for _ in range(2):
            worker.end(worker.next())
        with Player(worker, worker.end):
            assert len(list(client.plan_ends("p", tasks))) == 20
        assert set(paths) == {"/api/plans/p"}
        assert len(paths) <= 21

    def test_more_than_a_coordinator_remembers(self, client, worker, monkeypatch):
        """As after a coordinator's death: what it does not hold any more is asked for by itself."""
        monkeypatch.setattr(pool, "RECENT", 1)
        tasks = submit(client, "p", 4)
        for _ in tasks:
            worker.end(worker.next())
        for task in tasks:
            client.wait(task, DEADLINE)
        assert len(client.connection.ask("GET", "/api/plans/p")["ended"]) == 1
        assert {info.task_id for info in client.plan_ends("p", tasks)} == set(tasks)

    def test_tasks_that_nobody_knows(self, client, monkeypatch):
        monkeypatch.setattr(client_module, "LONG_POLL", 0.1)
        with pytest.raises(DtfError, match="the farm does not know 1 tasks of the plan p"):
            list(client.plan_ends("p", [new_task_id(time.time())]))

    def test_what_the_coordinator_tells(self, client, worker):
        tasks = submit(client, "p", 2)
        told = client.connection.ask("GET", "/api/plans/p", unfinished="true")
        assert (told["num_live"], told["ended"], sorted(told["unfinished"])) == (2, [], sorted(tasks))
        worker.end(worker.next())
        news = client.connection.ask("GET", "/api/plans/p", after=told["revision"], left=2, wait=DEADLINE)
        assert (news["num_live"], len(news["ended"])) == (1, 1)
        later = client.connection.ask("GET", "/api/plans/p", after=news["revision"], left=1, wait=0.01)
        assert (later["num_live"], later["ended"]) == (1, [])

    def test_cancelled(self, client, worker):
        tasks = submit(client, "p", 3)
        other = client.submit(["x"])
        assert client.cancel_plan("p", "not wanted") == 3
        assert {(info.status, info.reason) for info in map(client.task, tasks)} == {("cancelled", "not wanted")}
        assert not client.task(other).done
        assert client.cancel_plan("p") == 0

    def test_cancelled_in_several_requests(self, client, monkeypatch):
        monkeypatch.setattr(tasks_module, "CANCELLED_AT_ONCE", 2)
        tasks = submit(client, "p", 5)
        assert client.cancel_plan("p") == 5
        assert {client.task(task).status for task in tasks} == {"cancelled"}


class TestCommand:
    def test_to_its_end(self, dtf, worker, capsys):
        """In the order of their dependencies, with one source for all."""
        orders: list[Run] = []

        def play(order: Run) -> None:
            orders.append(order)
            worker.start(order)
            worker.end(order)

        with Player(worker, play):
            assert dtf("run", "plan.yaml") == 0
        assert orders[0].specification.command == ("sh", "-ec", "b")
        assert {order.specification.command[-1] for order in orders[1:3]} == {"t 1", "t 2"}
        assert {order.specification.command[-1] for order in orders[3:]} == {"p", "c"}
        assert len({order.specification.source for order in orders}) == 1
        assert orders[0].specification.source
        out, err = capsys.readouterr()
        lines = out.splitlines()
        assert lines[0] == "[1/5] build: completed on w in 1.0 s"
        assert lines[4].startswith("[5/5] ")
        assert lines[5].split() == ["TASK", "STATUS", "WORKER", "SECONDS", "ATTEMPTS", "WHY"]
        assert [line.split() for line in lines[6:]] == [
            [name, "completed", "w", "1.0", "1"] for name in ("build", "test[1]", "test[2]", "package", "clean")
        ]
        assert "5 tasks of the plan p" in err

    def test_the_worst_task_counts(self, dtf, worker, capsys):
        """A failed task is 7, what it skips is 1."""

        def play(order: Run) -> None:
            if order.specification.command[-1] == "t 2":
                worker.end(order, OutcomeKind.FAILED, exit_code=7, reason="exit code 7")
            else:
                worker.end(order)

        with Player(worker, play):
            assert dtf("run", "plan.yaml", "--json") == 7
        out, err = capsys.readouterr()
        told = json.loads(out)
        assert told["exit_code"] == 7
        assert {task["name"]: task["status"] for task in told["tasks"]} == {
            "build": "completed",
            "test[1]": "completed",
            "test[2]": "failed",
            "package": "skipped",
            "clean": "completed",
        }
        assert "] test[2]: failed on w in 1.0 s: exit code 7\n" in err
        assert "] package: skipped: skipped: it comes after" in err

    def test_no_wait(self, dtf, client, worker, capsys):
        assert dtf("run", "--no-source", "plan.yaml", "--no-wait") == 0
        plan = capsys.readouterr().out.strip()
        assert len(list(client.tasks(plan=plan))) == 5
        assert dtf("tasks", "--plan", plan) == 0
        assert sorted(line.split()[-1] for line in capsys.readouterr().out.splitlines()[1:]) == [
            "build",
            "clean",
            "package",
            "test[1]",
            "test[2]",
        ]

    def test_ctrl_c_cancels_what_is_left(self, dtf, client, worker, capsys):
        """Whatever of it has ended keeps its end."""
        main_thread = threading.get_ident()
        cancelled = []

        def play(order: Run) -> None:
            if order.specification.command[-1] == "b":
                worker.end(order)
            elif not cancelled:
                cancelled.append(order)
                signal.pthread_kill(main_thread, signal.SIGINT)

        with Player(worker, play):
            assert dtf("run", "plan.yaml") == 130
        assert "what was left of the plan" in capsys.readouterr().err
        assert sorted(info.status for info in client.tasks()) == ["cancelled"] * 4 + ["completed"]

    def test_ctrl_c_while_it_is_submitted(self, dtf, client, monkeypatch, capsys):
        """The answer to a batch is lost: none of its tasks comes after the cancellation."""
        submit_all = client_module.Client.submit_all
        calls = []

        def interrupted(self, requests, **fields):
            calls.append([request["task_id"] for request in requests])
            if len(calls) == 2:
                raise KeyboardInterrupt
            return submit_all(self, requests, **fields)

        monkeypatch.setattr(client_module, "BATCH", 2)
        monkeypatch.setattr(client_module.Client, "submit_all", interrupted)
        assert dtf("run", "plan.yaml") == 130
        assert calls[2] == calls[1]
        assert len(calls) == 3
        assert [info.status for info in client.tasks()] == ["cancelled"] * 4

    def test_what_the_farm_refuses_leaves_nothing_behind(self, dtf, client, monkeypatch, tmp_path, capsys):
        monkeypatch.setattr(client_module, "BATCH", 1)
        (tmp_path / "project" / "plan.yaml").write_text(
            f"tasks: {{a: {{run: x}}, b: {{run: '{'x' * 100_001}', after: a}}}}"
        )
        assert dtf("run", "plan.yaml") == 2
        assert "over 100000 characters" in capsys.readouterr().err
        assert [info.status for info in client.tasks()] == ["cancelled"]

    @pytest.mark.parametrize(
        ("arguments", "told"),
        [
            (["none.yaml"], "cannot read none.yaml"),
            (["bad.yml"], "bad.yml:1:13: unknown key 'rum' in the task 'a'; did you mean 'run'?"),
            (
                ["plan.yaml", "x"],
                "'x' behind the plan plan.yaml is not known; to run plan.yaml as a command: dtf farm run --",
            ),
            (["plan.yaml", "--nowait"], "'--nowait' behind the plan plan.yaml is not known"),
            (["--priority", "3", "plan.yaml"], "--priority is an option of a command: write it into plan.yaml"),
            (["--no-wait", "--", "plan.yaml"], "--no-wait and --json are options of plans"),
        ],
    )
    def test_bad_input(self, dtf, client, tmp_path, capsys, arguments, told):
        (tmp_path / "project" / "bad.yml").write_text("tasks: {a: {rum: x}}")
        assert dtf("run", "--no-source", *arguments) == 2
        assert told in capsys.readouterr().err
        assert list(client.tasks()) == []
