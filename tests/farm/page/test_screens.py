"""What the screens show: of nothing, of much, of names that are markup, of outputs of any kind, and as it changes."""

from __future__ import annotations

import json
import re
import time
from urllib.parse import urlencode

import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.rules.attempts import OutcomeKind
from support.farm.browsing import Browsing, Stream
from support.farm.server import DEADLINE, CoordinatorInThread, PlayedWorker, wait_until_running

pytestmark = pytest.mark.process

_LATER = ("uptime_seconds", "last_heartbeat", "health_status")
"""Of a coordinator, what another moment may tell otherwise."""
SCREENS = ("/", "/tasks", "/fleet", "/cluster")
EVIL = """<img src=x onerror=alert(1)>"'&"""


def text_of(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", html))


@pytest.fixture
def order(client, worker):
    """A task that the worker has."""

    def make(**fields):
        task = client.submit(fields.pop("command", ["x"]), **fields)
        order = worker.next()
        assert order.task == task
        return order

    return make


class TestNoData:
    """Before there is a worker or a task."""

    @pytest.fixture(scope="class")
    @staticmethod
    def empty(tmp_path_factory):
        from dtf_lightning.etcd.memory.store import MemoryStore
        from dtf_lightning.farm.tokens import read_token

        store = MemoryStore()
        coordinator = CoordinatorInThread(store, tmp_path_factory.mktemp("empty"))
        coordinator.loop.start_threads()
        yield Browsing(coordinator.url, read_token(coordinator.token_file))
        coordinator.stop()
        store.close()

    @pytest.mark.parametrize(
        ("path", "told"),
        [
            ("/", "Nothing has ended yet. 0 of 0 workers are there."),
            ("/", "No worker has come yet. dtf farm worker offers a machine."),
            ("/tasks", "There is no task yet."),
            ("/tasks?search=x", "No task is like that."),
            ("/fleet", "No worker has come yet."),
            ("/fleet?status=busy", "No worker is like that."),
            ("/cluster", "c0 leads the farm f in term"),
        ],
    )
    def test_it_says_so(self, empty, path, told):
        def shown() -> str:
            answer = empty.get(path)
            assert answer.status == 200
            return re.sub(r" (?=[.,])", "", text_of(answer.text))

        poll_until(lambda: told in shown(), DEADLINE, lambda: f"{told!r} in {shown()!r}")

    @pytest.mark.parametrize(
        ("path", "status", "told"),
        [
            ("/tasks/x", 404, "knows no task"),
            ("/tasks/unknown", 404, "knows no task"),
            ("/plans/x", 404, "knows no plan"),
            ("/nothing", 404, "no screen /nothing"),
            ("/tasks?status=runing", 422, "expected one of waiting, pending"),
            ("/tasks?sort=nme", 422, "cannot be sorted by"),
            ("/tasks?colour=red", 422, "cannot be filtered by colour; try status"),
            ("/tasks?cursor=x", 422, "cursor"),
        ],
    )
    def test_what_is_not_there_or_wrong(self, empty, path, status, told):
        answer = empty.get(path)
        assert (answer.status, told in text_of(answer.text)) == (status, True), answer.text
        asked = empty.ask("GET", path + ("&" if "?" in path else "?") + "format=json")
        assert (asked.status, told in asked.json()["error"]) == (status, True)


class TestOneTruth:
    """HTML and JSON of a screen are made of one thing, and its rows are what the API gives."""

    def test_rows_are_those_of_the_api(self, page, client, worker, order):
        client.set_project("p")
        mine = order(name="same", project="p")
        worker.start(mine)
        wait_until_running(client, mine.task)
        shown = page.data("/tasks", project="p")["tasks"]
        assert shown == client.connection.ask("GET", "/api/tasks", project="p")["tasks"]
        assert page.data(f"/tasks/{mine.task}")["task"] == client.task(mine.task).raw
        told = page.data("/cluster")["nodes"], client.connection.ask("GET", "/api/cluster/status")["nodes"]
        shown, asked = ([{**node, **dict.fromkeys(_LATER)} for node in nodes] for nodes in told)
        assert shown == asked
        (row,) = page.data("/fleet")["workers"]
        assert row["used"] == {"cpu": 1.0}
        (api,) = client.connection.ask("GET", "/api/workers")["workers"]
        assert {name: row[name] for name in api} == api
        counts = page.data("/")["counts"]
        assert counts == {"waiting": 0, "pending": 0, "assigned": 0, "running": 1}
        worker.end(mine)
        client.wait(mine.task, DEADLINE)

    def test_a_filter_changes_no_number_of_other_things(self, page, client, worker):
        assert page.data("/fleet", status="offline")["total"] == page.data("/fleet")["total"] == 1
        assert page.data("/fleet", status="offline")["workers"] == []

    def test_the_list_has_filters_orders_and_pages(self, page, client, monkeypatch):
        from dtf_lightning.farm.page import screens

        monkeypatch.setattr(screens, "PAGE", 2)
        client.set_project("list")
        tasks = [
            client.submit(["list"], name=f"list {number}", project="list", needs={"gpu": 1}) for number in range(3)
        ]
        first = page.data("/tasks", search="LIST 1")["tasks"]
        assert [task["task_id"] for task in first] == [tasks[1]]
        shown = page.data("/tasks", project="list", sort="name")
        assert [task["name"] for task in shown["tasks"]] == ["list 0", "list 1"]
        rest = page.data("/tasks", project="list", sort="name", cursor=shown["next"])
        assert ([task["name"] for task in rest["tasks"]], rest["next"]) == (["list 2"], None)
        html = page.get("/tasks", project="list", sort="name").text
        assert 'aria-sort="ascending"' in html
        assert 'href="/tasks?project=list&amp;sort=-name"' in html
        assert f"cursor={shown['next']}" in html
        for task in tasks:
            client.cancel(task)


class TestATask:
    def test_why_it_waits(self, page, client, worker, order):
        first = order(name="first")
        waiting = client.submit(["x"], name="second", after=[first.task])
        html = page.get(f"/tasks/{waiting}").text
        assert "It waits for first ( assigned )" in text_of(html).replace("(assigned)", "( assigned )")
        too_much = client.submit(["x"], needs={"gpu": 8})
        poll_until(lambda: page.data(f"/tasks/{too_much}")["why"], DEADLINE, "a reason")
        assert page.data(f"/tasks/{too_much}")["why"] in text_of(page.get(f"/tasks/{too_much}").text)
        assert [task["task_id"] for task in page.data("/")["waiting"]] == [too_much]
        client.cancel(too_much)
        worker.end(first)
        second = worker.next()
        worker.end(second)
        client.wait(waiting, DEADLINE)

    def test_attempts_before_it(self, page, client, worker, order):
        first = order(retries=1)
        worker.write(first, 0, b"the first try\n")
        worker.end(first, OutcomeKind.FAILED, reason="exit code 9")
        second = worker.next()
        worker.write(second, 0, b"the second try\n")
        for _ in ("while it runs", "when it is done"):
            (before,) = page.data(f"/tasks/{first.task}")["failed_attempts"]
            assert (before["number"], before["revision"], before["reason"]) == (1, first.revision, "exit code 9")
            assert f'href="?attempt={first.revision}"' in page.get(f"/tasks/{first.task}").text
            assert page.data(f"/tasks/{first.task}")["output"]["attempt"] == second.revision
            worker.end(second)
            client.wait(first.task, DEADLINE)
        old = page.get(f"/tasks/{first.task}/output", attempt=str(first.revision), at="0").json()
        assert old["html"] == "the first try\n"

    def test_cancelled_on_the_page(self, page, client, worker, order):
        mine = order()
        assert page.act("cancel-task", mine.task).text == "Cancelled."
        assert worker.cancelled.get(timeout=DEADLINE).task == mine.task
        data = page.data(f"/tasks/{mine.task}")
        assert (data["task"]["status"], data["why"], data["done"]) == ("cancelled", "cancelled on the page", True)
        assert page.act("cancel-task", mine.task).text == "It had ended before."
        assert 'id="cancel"' not in page.get(f"/tasks/{mine.task}").text


class TestOutput:
    def test_parts_and_search(self, page, client, worker, order):
        mine = order()
        lines = b"".join(b"line %d\n" % number for number in range(30_000))
        worker.write(mine, 0, lines)
        path, attempt = f"/tasks/{mine.task}/output", str(mine.revision)
        last = page.get(path, attempt=attempt, where="before", at="-1").json()
        assert (last["end"], last["size"]) == (len(lines), len(lines))
        assert last["html"].endswith("line 29999\n")
        assert last["end"] - last["start"] <= 65536
        found = page.get(f"/tasks/{mine.task}/search", attempt=attempt, text="LINE 12345").json()
        assert found["at"] == lines.index(b"line 12345")
        around = page.get(path, attempt=attempt, where="around", at=str(found["at"]), mark="line 12345").json()
        assert "line 12344\n<mark>line 12345</mark>\n" in around["html"]
        worker.end(mine)
        client.wait(mine.task, DEADLINE)

    def test_markup_and_bytes_that_are_no_text(self, page, client, worker, order):
        mine = order()
        worker.write(mine, 0, b"<script>alert(1)</script>\n\x00\xff\x1b[31m<b>")
        part = page.get(f"/tasks/{mine.task}/output", attempt=str(mine.revision), at="0").json()
        assert part["html"] == '&lt;script&gt;alert(1)&lt;/script&gt;\n␀\ufffd<span class="fg1">&lt;b&gt;</span>'
        worker.end(mine)
        client.wait(mine.task, DEADLINE)

    @pytest.mark.parametrize(
        ("path", "told"),
        [("output?attempt=x", "attempt: 'x' is no whole number"), ("search?attempt=1", "nothing to search for")],
    )
    def test_wrong_questions(self, page, path, told):
        answer = page.ask("GET", f"/tasks/{new_task_id(time.time())}/{path}", Accept="application/json")
        assert (answer.status, told in answer.text) == (422, True)

    def test_no_file_outside_of_the_outputs(self, page):
        for task in ("..%2f..%2ftoken", "..", "x"):
            assert page.ask("GET", f"/tasks/{task}/output?attempt=1", Accept="*/*").status in (404, 422)

    def test_nothing_written(self, page):
        part = page.get(f"/tasks/{new_task_id(time.time())}/output", attempt="1", where="before", at="-1").json()
        assert part == {"start": 0, "end": 0, "size": 0, "html": ""}


def test_names_that_are_markup(page, client, worker, order, coordinator, token):
    """On every screen they are text, in attributes too."""
    plan = new_task_id(time.time())
    client.set_project(EVIL)
    other = PlayedWorker((coordinator.url,), token, name=f"w/{EVIL}", cpu=1.0)
    other.wait_until_welcome()
    client.submit([EVIL], name=EVIL, project=EVIL, plan=plan, needs={"gpu": 1})
    for path in (*SCREENS, f"/plans/{plan}", f"/tasks?{urlencode({'project': EVIL})}"):
        html = page.get(path).text
        assert "<img" not in html, path
        assert "onerror=alert(1)&gt;&#34;&#39;&amp;" in html or path == "/cluster", path
    (task,) = page.data("/tasks", project=EVIL)["tasks"]
    html = page.get(f"/tasks/{task['task_id']}").text
    assert "<img" not in html
    assert page.act("cordon", f"w/{EVIL}").text == f"w/{EVIL} gets nothing more; what it runs goes on."
    other.close()
    client.cancel(task["task_id"])


class TestTheFleet:
    def test_cordon_uncordon_and_drain(self, page, client, coordinator, token):
        other = PlayedWorker((coordinator.url,), token, name="other", cpu=1.0)
        other.wait_until_welcome()

        def state():
            workers = {worker["worker_id"]: worker for worker in page.data("/fleet")["workers"]}
            return workers["other"]["status"], workers["other"]["metadata"]["cordoned"]

        assert state() == ("online", False)
        assert page.act("cordon", "other").status == 200
        assert state() == ("online", True)
        assert page.act("uncordon", "other").status == 200
        assert state() == ("online", False)
        assert page.act("drain", "other").text == "other finishes what it runs, and ends."
        assert other.draining.wait(DEADLINE)
        assert state()[0] == "draining"
        other.close()

    def test_what_is_not_there(self, page, client):
        for action, name in (("cordon", "nobody"), ("explode", "w"), ("cancel-task", "x")):
            answer = page.act(action, name)
            assert (answer.status, "no " in answer.text) == (404, True)

    def test_before_what_cannot_be_undone_it_asks(self, page, worker, client, order):
        mine = order()
        for path in ("/fleet", f"/tasks/{mine.task}"):
            for button in re.findall(r"<button[^>]*hx-post=[^>]*>", page.get(path).text):
                undone = "/sign-out" in button or "/do/cordon" in button or "/do/uncordon" in button
                assert undone != ("hx-confirm=" in button), button
        worker.end(mine)
        client.wait(mine.task, DEADLINE)


class TestAPlan:
    def test_progress_graph_and_tasks(self, page, client, worker, order):
        plan = new_task_id(time.time())
        first = order(name="numbers", plan=plan)
        for number in (2, 3):
            client.submit(["x"], name=f"squares[{number}]", plan=plan, after=[first.task])
        data = page.data(f"/plans/{plan}")
        assert (data["total"], data["done"], data["counts"]) == (3, 0, {"assigned": 1, "waiting": 2})
        assert [node["title"] for node in data["graph"]["nodes"]] == ["numbers", "squares[2]", "squares[3]"]
        assert len(data["graph"]["lines"]) == 2
        html = page.get(f"/plans/{plan}").text
        assert html.count("<rect") == 3
        assert f'href="/tasks/{first.task}"' in html
        assert len(page.data("/tasks", plan=plan)["tasks"]) == 3
        assert page.act("cancel-plan", plan).text == "3 tasks are cancelled."
        assert page.data(f"/plans/{plan}")["counts"] == {"cancelled": 3}
        assert worker.cancelled.get(timeout=DEADLINE).task == first.task


class TestLive:
    def test_a_change_is_sent_with_its_revision(self, page, client, worker, order):
        mine = order(name="watched")
        stream = Stream(page, f"/tasks/{mine.task}")
        assert (stream.status, stream.content_type) == (200, "text/event-stream; charset=utf-8")
        stream.until("assigned")
        worker.start(mine)
        stream.until("running")
        worker.write(mine, 0, b"x" * 10)
        stream.until('data-size="10"')
        worker.end(mine)
        seen = ""
        while "completed" not in (event := stream.view())["data"]:
            seen = event["id"]
        assert int(event["id"].partition("-")[0]) > mine.revision
        stream.close()
        again = Stream(page, f"/tasks/{mine.task}", last=seen or "0-x")
        assert "completed" in again.view()["data"]
        again.close()

    def test_a_page_is_sent_nothing_that_it_shows(self, page):
        """The id of what was first drawn is what the stream goes on from."""
        html = page.get("/fleet").text
        seen = re.search(r'data-id="([^"]+)"', html)[1]
        stream = Stream(page, "/fleet", seen=seen)
        page.act("cordon", "w")
        assert 'aria-label="Uncordon w"' in stream.view()["data"]
        page.act("uncordon", "w")
        assert 'aria-label="Uncordon w"' not in stream.view()["data"]
        stream.close()

    def test_what_is_gone_is_said(self, page):
        stream = Stream(page, f"/tasks/{new_task_id(time.time())}")
        assert "knows no task" in stream.view()["data"]
        stream.close()

    def test_the_end_of_the_coordinator_is_not_held_up(self, tmp_path, monkeypatch):
        """A stream that is open ends with it, and does not wait for its patience with requests to end."""
        from dtf_lightning.etcd.memory.store import MemoryStore
        from dtf_lightning.farm.server.wire import serving
        from dtf_lightning.farm.tokens import read_token

        monkeypatch.setattr(serving, "SHUTDOWN_TIMEOUT", 10 * DEADLINE)
        store = MemoryStore()
        coordinator = CoordinatorInThread(store, tmp_path)
        stream = Stream(Browsing(coordinator.url, read_token(coordinator.token_file)), "/")
        stream.view()
        coordinator.stop()
        while stream.next() is not None:
            pass
        stream.close()
        store.close()


def test_the_json_of_every_screen(page, worker):
    for path in SCREENS:
        answer = page.get(path, format="json")
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert json.loads(answer.text)["screen"] == {"/": "now"}.get(path, path[1:])
