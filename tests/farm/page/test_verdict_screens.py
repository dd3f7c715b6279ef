"""Grid, Test, Compare and the trainings of a real farm: what they show is what has run, and without verdicts they say so."""

from __future__ import annotations

import json
import re

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.clock import poll_until
from dtf_lightning.farm.page.verdicts.comparisons import verdicts_of
from dtf_lightning.farm.page.verdicts.screens import named
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.rules.attempts import OutcomeKind
from dtf_lightning.farm.rules.watching.devices import device_class
from dtf_lightning.farm.verdicts.metrics import Metric
from dtf_lightning.farm.verdicts.pairs.comparison import Comparison, Sample
from dtf_lightning.farm.verdicts.pairs.plan import Plan, Side, first_of_pair
from dtf_lightning.farm.verdicts.pairs.verdict import judge
from support.farm.server import DEADLINE

pytestmark = pytest.mark.process

EVIL = """<img src=x onerror=alert(1)>"'&"""


@pytest.fixture
def run(client, worker):
    """Lets a task run to its end."""

    def make(name, kind=OutcomeKind.COMPLETED, told=None, **fields):
        task = client.submit(["x"], name=name, **fields)
        order = worker.next()
        assert order.task == task
        worker.start(order)
        worker.end(order, kind, **(told or {}))
        client.wait(task, DEADLINE)
        return task

    return make


def text_of(html):
    return re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", html))


def until(look, good):
    seen = [look()]
    poll_until(lambda: good(seen[-1]) or seen.append(look()), DEADLINE, lambda: f"{seen[-1]}")
    return seen[-1]


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/grid", "No test has run yet."),
        ("/test?name=x", "This test has not run."),
        ("/compare", "There are not yet two plans with results to compare."),
        ("/compare", "No verdicts yet."),
        ("/trainings", "There is no training."),
    ],
)
def test_a_farm_that_has_done_nothing(page, path, told):
    answer = page.get(path)
    assert (answer.status, told in answer.text) == (200, True), answer.text


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("/grid?by=colour", "expected one of class, worker, plan"),
        ("/grid?colour=red", "cannot be filtered by colour; try by"),
        ("/test", "which test?"),
        ("/test?name=x&metric=latency", "has no unit"),
        ("/compare?base=a&candidate=b", "is no plan with results"),
        ("/grid?format=svg", "this view has no"),
        ("/grid?format=doc", "expected html, json, csv, parquet or svg"),
        ("/grid?format=csv&table=x", "it has rows"),
    ],
)
def test_wrong_questions(page, path, told):
    answer = page.ask("GET", path, Accept="application/json")
    assert (answer.status, told in answer.text) == (422, True), answer.text


def test_one_test_on_three_screens(page, client, run):
    """Two plans of one test, of which the second fails; on Grid, Test and Compare, as JSON and as HTML, with a name that is markup."""
    plans = [new_task_id(1_800_000_000.0 + number) for number in (0, 1)]
    run(EVIL, plan=plans[0], environment={"GIT_BRANCH": "main"}, told={"metrics": {"latency": 5.0}})
    failed = run(
        EVIL, OutcomeKind.FAILED, plan=plans[1], environment={"GIT_BRANCH": "mine"},
        told={"reason": f"exit code 3 {EVIL}", "tail": EVIL, "exit_code": 3},
    )  # fmt: skip
    data = until(lambda: page.data("/grid", search="IMG"), lambda data: data["rows"] and data["rows"][0]["runs"] == 2)
    (row,) = data["rows"]
    assert (row["test"], row["last"], row["changed"]) == (EVIL, "failed", True)
    assert row["cells"]["cpu"]["before"] == "passed"
    assert page.data("/grid", by="worker")["places"] == ["w"]
    by_plan = page.data("/grid", by="plan", which="changed")
    assert by_plan["places"] == plans[::-1]
    assert {plan: (cell["last"], cell["changed"]) for plan, cell in by_plan["rows"][0]["cells"].items()} == {
        plans[0]: ("passed", False), plans[1]: ("failed", True)
    }  # fmt: skip

    test = page.data("/test", name=EVIL, metric="latency:ms")
    assert (test["count"]["runs"], test["count"]["failed"], test["count"]["failure_rate"]) == (2, 1, 0.5)
    assert [(one["end"], one["version"], one["task"] == failed) for one in test["runs"]] == [
        ("failed", "mine", True),
        ("passed", "main", False),
    ]
    assert (test["failures"][0]["reason"], test["failures"][0]["tail"]) == (f"exit code 3 {EVIL}", EVIL)
    assert page.data("/test", name=EVIL, branch="main")["num_listed"] == 1

    compared = page.data("/compare", base="main", candidate="mine", metric="latency:ms")
    assert (compared["base"]["plan"], compared["counts"]["broken"]) == (plans[0], 1)
    for path, query in (
        ("/grid", {}),
        ("/test", {"name": EVIL}),
        ("/compare", {"base": "main", "candidate": "mine"}),
        ("/grid", {"format": "html"}),
        ("/test", {"name": EVIL, "format": "html"}),
    ):
        html = page.get(path, **query).text
        assert "<img" not in html, (path, query)
        assert "onerror=alert(1)&gt;" in html
        assert "No verdicts yet" in html


def test_a_test_in_quarantine(page, client, run):
    """It is shown as it ended, with until when its failures do not count, and whose it is."""
    run("flaky[1]", OutcomeKind.FAILED)
    asked = {"owner": EVIL, "reason": "its port is taken", "seconds": 86400.0}
    client.connection.ask("PUT", "/api/quarantine/default/flaky", asked)
    row = until(lambda: page.data("/grid", search="flaky")["rows"], bool)[0]
    assert (row["last"], row["quarantine"].startswith("in quarantine until ")) == ("failed", True)
    for path in ("/grid?search=flaky", "/test?name=flaky%5B1%5D"):
        html = page.get(path).text
        assert ": its port is taken" in html
        assert "<img" not in html
    assert page.data("/grid", search="flaky", project="other")["rows"] == []
    client.connection.ask("DELETE", "/api/quarantine/default/flaky")
    assert page.data("/test", name="flaky[1]")["quarantine"] is None


def test_a_series_is_drawn_and_saved(page, run):
    for value in (5.0, 5.1, 5.2):
        run("series", told={"metrics": {"latency": value}})
    query = {"name": "series", "metric": "latency:ms"}
    data = until(lambda: page.data("/test", **query), lambda data: len(data["series"]) == 3)
    assert [point["value"] for point in data["drawing"]["points"]] == [5.0, 5.1, 5.2]
    html = page.get("/test", **query).text
    assert html.count("<circle") == 3
    assert "format=svg&amp;chart=series" in html
    svg = page.get("/test", **query, format="svg", chart="series")
    assert svg.headers["content-type"] == "image/svg+xml"
    assert svg.text.startswith("<svg xmlns=")
    assert svg.text.count("<circle") == 3
    saved = page.get("/test", **query, format="csv", table="series")
    assert saved.text.splitlines()[0] == "task,value"
    assert saved.headers["content-disposition"] == 'attachment; filename="series.csv"'


def test_a_view_as_one_file(page, worker, run):
    """No script, no button, nothing from elsewhere; its links lead to the coordinator, and it says what it is."""
    run("kept")
    for path in ("/", "/tasks?name=kept", "/fleet", "/grid"):
        html = page.get(path + ("&" if "?" in path else "?") + "format=html").text
        assert "default-src 'none'" in html
        for word in ("<script", "<button", "<form", "url(", "<link"):
            assert word not in html, (path, word)
        assert re.search(r"<[^>]* (src|hx-[a-z]+)=", html) is None, path
        assert f'href="{page.url}/' in html
        assert 'href="/' not in html
    assert "name = kept" in page.get("/tasks", name="kept", format="html").text


def test_a_view_is_saved_by_a_command(page, run, coordinator, tmp_path, capsys):
    run("kept")
    file = tmp_path / "report.html"
    farm = ["--farm", page.url, "--token-file", str(coordinator.token_file)]
    assert main(["farm", "report", "/grid?search=kept", "--html", str(file), *farm]) == 0
    assert re.fullmatch(rf"{re.escape(str(file))}: \d+ kB\n", capsys.readouterr().out)
    assert "search = kept" in file.read_text("utf-8")
    for view, told in (
        ("grid", "is no view of the page"),
        ("/grid?by=x", "expected one of class"),
        ("/nothing", "no screen"),
    ):
        assert main(["farm", "report", view, "--html", str(file), *farm]) != 0
        assert told in capsys.readouterr().err
    assert main(["farm", "report", "/", "--html", str(tmp_path), *farm]) == 2


def test_what_is_saved_has_no_pages(page, client, monkeypatch):
    from dtf_lightning.farm.page import screens

    monkeypatch.setattr(screens, "PAGE", 2)
    tasks = [client.submit(["x"], name=f"=many {number}", needs={"gpu": 9}) for number in range(3)]
    rows = json.loads(page.get("/tasks", search="many", format="json", table="tasks").text)
    assert {row["task_id"] for row in rows} == set(tasks)
    assert {row["metadata.gang"] for row in rows} == {1}
    assert "\n" + tasks[0] in "\n" + page.get("/tasks", search="many", sort="name", format="csv", table="tasks").text
    assert ",'=many 0," in page.get("/tasks", search="many", format="csv", table="tasks").text
    for task in tasks:
        client.cancel(task)


def test_a_training(page, client, worker, monkeypatch):
    """Its world while it gives a device away, and when it has come back; its parts, and what it has lent, drawn."""
    from dtf_lightning.farm.server.scheduling import trainings

    monkeypatch.setattr(trainings, "AWAY", 0.2)
    monkeypatch.setattr(trainings, "PRICE", 0.0)
    training = client.train("train.py", endpoint="etcd:2379", workers=(1, 4), name=EVIL)
    orders = [worker.next() for _ in range(4)]
    worker.report(tasks={orders[0].task: {"generation": 2, "world_size": 4, "step": 40, "goodput": 0.75}})
    until(lambda: page.data(f"/trainings/{training}"), lambda data: data["run"])
    shown = text_of(page.get(f"/trainings/{training}").text)
    assert "Generation 2 , of 4 workers" in shown.replace("2, of", "2 , of")
    assert "Goodput 75 % of the time" in shown
    assert "generation 2, step 40, goodput 75 %" in text_of(page.get("/trainings").text)
    test = client.submit(["test"])
    asked = worker.yields.get(timeout=DEADLINE)
    data = page.data(f"/trainings/{training}")
    assert [one["wanted_by"] for one in data["world"]["leaving"]] == [test]
    assert [part["part"] for part in data["members"]] == [0, 1, 2, 3]
    assert [row["leaving"] for row in page.data("/trainings")["trainings"]] == [1]
    (left,) = (order for order in orders if order.task == asked.task)
    worker.end(left, OutcomeKind.YIELDED)
    worker.end(worker.next())
    again = worker.next()
    until(
        lambda: page.data(f"/trainings/{training}"), lambda data: data["borrowings"] and data["borrowings"][0]["back"]
    )
    html = page.get(f"/trainings/{training}").text
    assert "<img" not in html
    assert html.count('<rect class="bar"') == 1
    assert f'href="/trainings/{training}"' in page.get(f"/tasks/{training}").text
    assert page.get(f"/trainings/{training}", format="svg", chart="borrowings").text.startswith("<svg xmlns=")
    for order in (again, *(order for order in orders if order.task != asked.task)):
        worker.end(order, metrics={"generation": 3, "goodput": 0.5})
    client.wait(training, DEADLINE)
    ended = until(lambda: page.data("/trainings")["trainings"], lambda rows: rows and rows[0]["status"] == "completed")
    assert (ended[0]["task_id"], ended[0]["borrowings"]) == (training, 1.0)
    assert page.data(f"/trainings/{training}")["run"] == {"generation": 3.0, "goodput": 0.5}
    members = until(lambda: page.data(f"/trainings/{training}")["members"], lambda members: len(members) == 4)
    assert {part["status"] for part in members} == {"completed"}
    assert page.get(f"/trainings/{test}").status == 422


def comparison() -> dict:
    """As `dtf farm compare --json` prints it."""
    plan, seed = Plan(max_pairs=40), "seed"
    samples = []
    for pair in range(20):
        first = first_of_pair(seed, pair)
        for side in sorted(Side, key=lambda side: side is not first):
            value = (1.0 if side.value == "base" else 1.2) + pair % 3 / 1000
            samples.append(Sample(pair=pair, side=side, process=f"{pair}{side.value}", value=value))
    told = Comparison(metric="time", unit="s", higher_is_better=False, plan=plan, seed=seed, samples=tuple(samples))
    return {"comparison": told.to_json(), "verdict": judge(told).to_json()}


def test_verdicts_are_recomputed_before_they_are_shown():
    body = {"id": "v", "base": EVIL, "candidate": "b", "sentence": "slower", **comparison()}
    line = json.dumps({"verdicts": [body]})
    (shown,) = verdicts_of(f"something before\n{line}\n".encode())
    assert (shown["state"], shown["base"]) == ("slower", EVIL)
    forged = json.loads(line)
    forged["verdicts"][0]["verdict"]["state"] = "faster"
    for output in (json.dumps(forged), '{"verdicts": 3}', '{"verdicts": [{}]}', '{"verdicts"', "", "\xff"):
        assert verdicts_of(output.encode()) == ()


@pytest.mark.parametrize("text", ["latency:ms", "items:1/s", "items:1/s:lower", "m:count:higher"])
def test_a_metric_is_named_as_it_is_asked_for(text):
    assert named(Metric.parse(text)) == text


@pytest.mark.parametrize(
    ("devices", "labels", "told"),
    [
        ({"cpu": 4, "memory": 100}, (), "cpu"),
        ({"cpu": 4, "gpu": 2, "browser": 1}, ("linux", "a100", "linux"), "browser, gpu, a100, linux"),
        ({"gpu": 0}, (), "cpu"),
        ({}, ("x",), "cpu, x"),
    ],
)
def test_device_classes(devices, labels, told):
    assert device_class(devices, labels) == told
