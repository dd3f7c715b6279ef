"""Jobs over several devices, through a real coordinator: split, run by played workers, merged, shown, ended."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.clock import poll_until
from dtf_lightning.errors import DtfError
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.farm.calls.returned import write_told
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.messages import Run
from dtf_lightning.farm.orchestrate.devices import Measured
from dtf_lightning.farm.orchestrate.splitting import Share, Strategy
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.orchestrations.values import OrchestrationRecord
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.server.orchestrations import orchestrations
from dtf_lightning.farm.server.orchestrations.models import OrchestrateRequest, asked_of
from dtf_lightning.farm.tokens import read_token
from dtf_lightning.farm.updates import ClientSocket
from support.farm.patience import patience
from support.farm.server import DEADLINE, CoordinatorInThread, PlayedWorker

__all__ = ["patience"]
pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def store():
    store = MemoryStore()
    yield store
    store.close()


@pytest.fixture(scope="module")
def coordinator(store, patience, tmp_path_factory):
    """One for all tests here: each begins with an idle worker, and no job that goes on."""
    coordinator = CoordinatorInThread(store, tmp_path_factory.mktemp("farm"))
    coordinator.loop.start_threads()
    yield coordinator
    coordinator.stop()


@pytest.fixture(scope="module")
def played(coordinator):
    worker = PlayedWorker((coordinator.url,), read_token(coordinator.token_file))
    worker.wait_until_welcome()
    yield worker
    worker.close()


@pytest.fixture
def client(coordinator):
    with coordinator.client() as client:
        yield client


@pytest.fixture
def worker(client, played):
    yield played
    for one in list(client.orchestrated_tasks()):
        if one["end_time"] is None:
            client.cancel_orchestrated_task(one["task_id"])
            ended(client, one["task_id"])
    for waiting in (played.orders, played.cancelled):
        while not waiting.empty():
            waiting.get_nowait()


class Player:
    """Ends what a played worker is told to run, in a thread of its own, as the test's function says."""

    def __init__(self, worker, play: Callable[[Run], None]) -> None:
        self._worker, self._play = worker, play
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Player:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.orders.put(None)
        self._thread.join(DEADLINE)

    def _run(self) -> None:
        while (order := self._worker.orders.get(timeout=DEADLINE)) is not None:
            self._play(order)


def kwargs_of(order) -> dict:
    """What a call is given."""
    return json.loads(order.specification.command[-1])["kwargs"]


def returns(worker, order, value) -> None:
    worker.end(order, returned=write_told({"value": value}))


def ended(client, job: str) -> dict:
    told: dict = {"end_time": None}

    def look() -> bool:
        told.update(client.orchestrated_task(job, wait=5))
        return told["end_time"] is not None

    poll_until(look, DEADLINE, f"{job} to end")
    return told


def job(**data) -> dict:
    return {"call": "m:f", "name": "j", **data}


def test_inputs_are_divided_and_joined_in_order(client, worker):
    """Two cores, four pieces each: the first two take half, and each order says which inputs are its own."""
    name = client.orchestrate(job(inputs=list(range(20)), kwargs={"by": 2}), "data_parallel")
    told = client.orchestrated_task(name)
    assert (told["completion_percentage"], told["strategy"]) == (0, "data_parallel")
    assert [one["share"] for one in told["subtasks"]][:2] == [{"begin": 0, "end": 5}, {"begin": 5, "end": 10}]
    seen = []
    for number in range(8):
        order = worker.next()
        given = kwargs_of(order)
        seen += given["inputs"]
        returns(worker, order, [given["by"] * one for one in given["inputs"]])
        if number == 0:
            poll_until(lambda: client.orchestrated_task(name, partial=True)["result"], DEADLINE, "a part")
            assert client.orchestrated_task(name, partial=True)["result"] == [2 * one for one in seen]
            told = client.orchestrated_task(name)
            assert (told["completion_percentage"], told["partial"], told["result"]) == (25, True, None)
    assert sorted(seen) == list(range(20))
    told = ended(client, name)
    assert (told["status"], told["completion_percentage"], told["partial"]) == ("completed", 100, False)
    assert told["result"] == [2 * one for one in range(20)] == client.orchestrated_result(name)
    assert client.task(told["subtasks"][0]["subtask_id"]).raw["name"] == "j[0:5]"
    assert name in [one["task_id"] for one in client.orchestrated_tasks(status="completed", limit=1)]


def test_a_command_is_told_its_share_by_variables(client, worker):
    """What it reports as metrics is merged."""
    name = client.orchestrate({"command": ["x"], "inputs": 4, "pieces": 1}, merge={"fields": {"n": "sum"}})
    for _ in range(2):
        order = worker.next()
        share = json.loads(order.specification.environment["DTF_FARM_SUBTASK"])
        assert share == {
            "begin": int(order.specification.environment["DTF_FARM_SUBTASK_BEGIN"]),
            "end": share["begin"] + 2,
        }
        worker.end(order, metrics={"n": float(share["end"])})
    told = ended(client, name)
    assert (told["result"], told["error"]) == ({"n": 6.0}, None)


def test_functions_of_the_requirements(client, worker):
    """The very message of the requirements, with the function that it lacks."""
    data = {
        "type": "benchmark",
        "model_name": "bert-base-uncased",
        "functions": ["latency", "throughput", "memory"],
        "call": "m:f",
    }
    name = client.orchestrate(data, "function_parallel")
    for _ in range(3):
        given = kwargs_of(order := worker.next())
        assert given["model_name"] == "bert-base-uncased"
        returns(worker, order, len(given["function"]))
    told = ended(client, name)
    assert told["result"] == {"latency": 7, "throughput": 10, "memory": 6}
    assert (told["type"], told["merge"]) == ("benchmark", "join")


def test_functions_that_are_called_themselves(client, worker):
    name = client.orchestrate({"functions": ["a:f", "b:g"]})
    orders = [worker.next(), worker.next()]
    assert sorted(order.specification.command[-2] for order in orders) == ["a:f", "b:g"]
    for order in orders:
        returns(worker, order, 1)
    assert ended(client, name)["result"] == {"a:f": 1, "b:g": 1}


def test_an_ensemble_votes(client, worker):
    name = client.orchestrate(job(models=["a", "b", "c"], inputs=[1, 2]), "ensemble", merge="vote")
    for _ in range(3):
        given = kwargs_of(order := worker.next())
        assert given["inputs"] == [1, 2]
        returns(worker, order, ["x", "y" if given["model"] == "b" else "z"])
    assert ended(client, name)["result"] == ["x", "z"]


def test_a_share_that_fails_is_cut_anew_for_others(client, worker):
    """One bad input of four: three of its neighbours are saved, the result is partial and says what is missing."""
    name = client.orchestrate(job(inputs=[1, 2, 3, 4], pieces=1), merge="concatenate", retry_limit=0)
    ran = []
    for _ in range(4):
        given = kwargs_of(order := worker.next())["inputs"]
        ran.append(given)
        if 3 in given:
            worker.end(order, OutcomeKind.FAILED)
        else:
            returns(worker, order, given)
    assert sorted(ran) == [[1, 2], [3], [3, 4], [4]]
    told = ended(client, name)
    assert (told["status"], told["result"], told["partial"]) == ("failed", [1, 2, 4], True)
    assert told["missing"] == ["2:3"]
    assert told["error"] == "1 of 3 subtasks did not complete: 2:3 failed"
    assert [one["name"] for one in told["subtasks"] if one["split_anew"]] == ["2:4"]
    with pytest.raises(DtfError, match="ended as failed: 1 of 3 subtasks"):
        client.orchestrated_result(name)


def test_a_failed_subtask_is_tried_again(client, worker):
    """As often as `retry_limit` says, before its share is cut; with `retry_failed_subtasks: false` neither."""
    name = client.orchestrate(job(inputs=[1, 2], pieces=2, needs=[{"amounts": {"cpu": 2}}]), retry_limit=1)
    worker.end(worker.next(), OutcomeKind.FAILED)
    for _ in range(2):
        order = worker.next()
        returns(worker, order, kwargs_of(order)["inputs"])
    assert ended(client, name)["result"] == [1, 2]
    name = client.orchestrate(job(inputs=[1, 2], pieces=1), retry_failed_subtasks=False)
    for _ in range(2):
        worker.end(worker.next(), OutcomeKind.FAILED)
    told = ended(client, name)
    assert (told["status"], told["retry_limit"], len(told["subtasks"]), told["result"]) == ("failed", 0, 2, None)


def test_a_function_of_ones_own_merges(client, worker):
    name = client.orchestrate(job(functions=["a", "b"]), merge={"call": "mine:merge"})
    for _ in range(2):
        order = worker.next()
        returns(worker, order, kwargs_of(order)["function"].upper())
    order = worker.next()
    assert order.specification.command[-2] == "mine:merge"
    assert kwargs_of(order) == {
        "parts": [{"name": "a", "weight": 1, "value": "A"}, {"name": "b", "weight": 1, "value": "B"}]
    }
    assert client.orchestrated_task(name)["status"] == "in_progress"
    returns(worker, order, {"all": "AB"})
    told = ended(client, name)
    assert (told["status"], told["result"]) == ("completed", {"all": "AB"})
    assert told["subtasks"][-1]["name"] == "merge"


def test_results_that_do_not_fit_together_are_named(client, worker):
    name = client.orchestrate(job(inputs=[1, 2], pieces=1), "data_parallel", merge="sum")
    for _ in range(2):
        order = worker.next()
        returns(worker, order, 1 if kwargs_of(order)["inputs"] == [1] else [1])
    told = ended(client, name)
    assert told["status"] == "failed"
    assert "the subtask '1:2' gave a list of 1, and '0:1' the number 1" in told["error"]


def test_cancel_ends_the_whole(client, worker):
    """What runs and what waits; nothing is submitted anew for it."""
    name = client.orchestrate(job(inputs=100))
    worker.next(), worker.next()
    assert client.cancel_orchestrated_task(name, "enough") == "cancelled"
    assert {worker.cancelled.get(timeout=DEADLINE).task for _ in range(2)}
    told = ended(client, name)
    assert (told["status"], told["error"]) == ("cancelled", "enough")
    assert {one["status"] for one in told["subtasks"]} == {"cancelled"}
    assert client.cancel_orchestrated_task(name) == "finished"
    assert client.plan(name)["done"] == 8


def test_twice_is_once(client, worker):
    task = new_task_id(time.time())
    assert [client.orchestrate(job(inputs=4, pieces=1), task_id=task) for _ in range(2)] == [task, task]
    assert len(client.orchestrated_task(task)["subtasks"]) == 2
    with pytest.raises(FarmRefused, match="another job was submitted under the id") as refusal:
        client.orchestrate(job(inputs=5), task_id=task)
    assert refusal.value.status == 409


@pytest.mark.parametrize(
    ("data", "strategy", "status", "error"),
    [
        (job(), "auto", 422, "there is nothing to split"),
        ({"inputs": 3}, "auto", 422, "say what each subtask does"),
        (job(inputs=3), "pipeline", 501, "splits a model into stages"),
        (job(inputs=3), "model_parallel", 501, "splits a model into stages"),
        (job(inputs=3), "fastest", 422, "strategy"),
        (job(inptus=3), "auto", 422, "did you mean 'inputs'"),
        (job(inputs=3, project="nobody"), "auto", 422, "no project is called 'nobody'"),
        (job(functions=["a:b"]), "auto", 422, "stand in the place of `call`"),
        (job(inputs=["x" * 300_000]), "auto", 422, "put the inputs into a file"),
        (job(inputs=["x" * 110_000]), "auto", 422, "have over 100000 characters"),
    ],
)
def test_what_cannot_be(client, worker, data, strategy, status, error):
    with pytest.raises(FarmRefused, match=error) as refusal:
        client.orchestrate(data, strategy)
    assert refusal.value.status == status
    assert not any(one["end_time"] is None for one in client.orchestrated_tasks())


def test_unknown(client):
    for ask in (client.orchestrated_task, client.cancel_orchestrated_task):
        with pytest.raises(FarmRefused, match="knows no orchestrated task 'x'"):
            ask("x")


class TestOverTheSocket:
    @pytest.fixture
    def line(self, coordinator):
        line = ClientSocket(coordinator.url, read_token(coordinator.token_file))
        yield line
        line.close()

    def ask(self, line: ClientSocket, **message) -> dict:
        line.send({"request_id": "r", **message})
        while (answer := line.receive(DEADLINE)).get("request_id") != "r":
            pass
        return answer

    def test_submit_and_follow(self, client, worker, line):
        """The messages of the requirements; each notification tells the whole."""
        updates = client.updates("orchestrated_task_updates", name="socket")
        assert next(updates)["type"] == "subscribed"
        data = job(functions=["latency", "memory"], name="socket")
        seen = []
        with Player(worker, lambda order: returns(worker, order, 1)):
            told = self.ask(line, type="orchestrate_task", task_data=data, strategy="function_parallel")
            assert (told["type"], told["success"]) == ("orchestrate_task_response", True)
            assert told["message"] == "Task orchestrated with strategy: function_parallel"
            for update in updates:
                seen.append(update)
                if update["status"] in ("completed", "failed"):
                    break
        updates.close()
        assert {update["type"] for update in seen} == {"orchestrated_task_update"}
        assert {update["task_id"] for update in seen} == {told["task_id"]}
        assert seen[0]["completion_percentage"] == 0
        assert (seen[-1]["status"], seen[-1]["completion_percentage"]) == ("completed", 100)
        assert 50 in [update["completion_percentage"] for update in seen]
        assert [one["status"] for one in seen[-1]["subtasks"]] == ["completed", "completed"]
        percents = [update["completion_percentage"] for update in seen]
        assert percents == sorted(percents)
        sequences = [update["sequence"] for update in seen]
        assert sequences == sorted(sequences)

    @pytest.mark.parametrize(
        ("message", "status", "error"),
        [
            ({"task_data": {"call": "m:f"}}, 422, "nothing to split"),
            ({}, 422, "task_data: Field required"),
            ({"task_data": {"call": "m:f", "inputs": 2}, "strategy": "pipeline"}, 501, "into stages"),
        ],
    )
    def test_what_cannot_be(self, line, message, status, error):
        told = self.ask(line, type="orchestrate_task", **message)
        assert (told["success"], told["status"]) == (False, status)
        assert error in told["error"]


def test_a_token_of_one_project_has_its_jobs_alone(coordinator, client, worker, tmp_path):
    client.set_project("mine")
    theirs = client.orchestrate(job(inputs=2))
    token = client.create_token("developer", projects=["mine"])["token"]
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text(token)
    with Client(coordinator.url, file) as limited:
        ours = limited.orchestrate(job(inputs=2, project="mine"))
        assert [one["task_id"] for one in limited.orchestrated_tasks()] == [ours]
        for ask in (limited.orchestrated_task, limited.cancel_orchestrated_task):
            with pytest.raises(FarmRefused, match="limited to the project mine") as refusal:
                ask(theirs)
            assert refusal.value.status == 403
        with pytest.raises(FarmRefused, match="limited to the project mine"):
            limited.orchestrate(job(inputs=2))
        assert limited.cancel_orchestrated_task(ours) == "cancelled"


def test_a_leader_brings_on_what_nobody_has_submitted(store, coordinator, client, worker, tmp_path):
    """A job that was accepted, and of which nothing was submitted: its coordinator died just then."""
    data = job(inputs=[1, 2], pieces=1, name="left")
    asked = OrchestrateRequest(task_data=data)
    shares = (Share(key="0", begin=0, end=1), Share(key="1", begin=1, end=2))
    record = OrchestrationRecord(
        asked=asked_of(asked), name="left", strategy=Strategy.DATA_PARALLEL, shares=shares, submitted=time.time()
    )
    name = new_task_id(time.time())
    store.put(FarmKeys("f").key(Kind.ORCHESTRATION, name), encode(record))
    second = CoordinatorInThread(store, tmp_path, name="c1")
    try:
        for _ in range(2):
            order = worker.next()
            returns(worker, order, kwargs_of(order)["inputs"])
        with second.client() as other:
            told = ended(other, name)
        assert (told["status"], told["result"]) == ("completed", [1, 2])
    finally:
        second.stop()


def test_shares_follow_what_devices_have_done(client, worker, monkeypatch):
    """A device with a label of its own that did four inputs a second gets four times the share, and rather than others."""
    speeds = [Measured(worker="fast", inputs=40, seconds=10.0), Measured(worker="w", inputs=10, seconds=10.0)]
    monkeypatch.setattr(orchestrations, "measured", lambda results, project, name: speeds)
    register = {"worker_id": "fast", "devices": {"cpu": 1}, "labels": ["quick"]}
    client.connection.ask("POST", "/api/register", register)
    told = client.orchestrated_task(client.orchestrate(job(inputs=60, pieces=1, name="speedy")))
    assert (
        told["reason"]
        == "60 inputs are all that can be divided; 3 shares of 60 inputs for 3 devices, by the speeds of their devices"
    )
    assert [one["share"] for one in told["subtasks"]] == [
        {"begin": 0, "end": 40, "label": "quick"}, {"begin": 40, "end": 50}, {"begin": 50, "end": 60},
    ]  # fmt: skip
    poll_until(
        lambda: client.task(told["subtasks"][0]["subtask_id"]).raw["worker_id"] == "fast", DEADLINE, "its device"
    )
    client.change_worker("fast", "cordon")


class TestCommands:
    @pytest.fixture
    def dtf(self, coordinator, tmp_path, monkeypatch):
        """Runs `dtf farm ...` in this process, in a folder of its own."""
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")

        def run(*words: str) -> int:
            where = ["--farm", coordinator.url, "--token-file", str(coordinator.token_file)]
            return main(["farm", words[0], *where, *words[1:]])

        return run

    def test_orchestrate_prints_the_result(self, dtf, client, worker, capsys):
        with Player(worker, lambda order: returns(worker, order, len(kwargs_of(order)["inputs"]))):
            (Path.cwd() / "inputs.json").write_text("[1, 2, 3]")
            words = ["--call", "m:f", "--inputs", "inputs.json", "--pieces", "1", "--merge", "sum", "--no-source"]
            assert dtf("orchestrate", *words, "--name", "cli") == 0
        told = capsys.readouterr()
        assert told.out == "3\n"
        assert "data_parallel, 3 inputs are all that can be divided; 2 shares" in told.err
        assert dtf("orchestrated") == 0
        assert "cli" in capsys.readouterr().out
        (job_id,) = (one["task_id"] for one in client.orchestrated_tasks() if one["name"] == "cli")
        assert dtf("orchestrated", job_id) == 0
        assert "result: 3" in capsys.readouterr().out
        assert dtf("orchestrated", job_id, "--cancel") == 0
        assert "finished" in capsys.readouterr().out

    def test_a_job_that_fails(self, dtf, worker, capsys):
        with Player(worker, lambda order: worker.end(order, OutcomeKind.FAILED)):
            assert dtf("orchestrate", "--function", "a", "--no-retry", "--no-source", "--", "x") == 1
        assert (
            "ended as failed: 1 of 1 subtasks did not complete: a failed; the result is partial"
            in capsys.readouterr().err
        )

    def test_a_plan(self, dtf, client, worker, capsys):
        """Its tasks first, then its jobs; to cancel it is to cancel these, too."""
        plan = "{name: p, tasks: {a: {run: x}, b: {call: 'm:f', after: a, orchestrate: {inputs: 4, pieces: 1, merge: sum}}}}"
        (Path.cwd() / "plan.yaml").write_text(plan)

        def play(order) -> None:
            if order.specification.name == "a":
                worker.end(order)
            else:
                returns(worker, order, kwargs_of(order)["end"])

        with Player(worker, play):
            assert dtf("run", "plan.yaml", "--no-source") == 0
        assert "6\n" in capsys.readouterr().out
        told = client.send_plan(plan)
        worker.next()
        (one,) = told["orchestrated"]
        assert client.cancel_plan(told["plan_id"]) == 1
        assert ended(client, one["task_id"])["status"] == "cancelled"

    @pytest.mark.parametrize(
        ("words", "error"),
        [
            (("orchestrate", "--call", "m:f", "--inputs", "nowhere.json"), "expected a number, or a JSON file"),
            (("orchestrate", "--call", "m:f", "--kwarg", "x"), "expected NAME=VALUE"),
            (("orchestrated", "--cancel"), "say which job"),
        ],
    )
    def test_bad_words(self, dtf, capsys, words, error):
        assert dtf(*words) == 2
        assert error in capsys.readouterr().err
