"""A plan's YAML: what it means, and what its errors say."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.plans.keys import ALTERNATIVE_KEYS, DURATION_PATTERN, PLAN_KEYS, TASK_KEYS, plan_schema
from dtf_lightning.farm.plans.reading import parse_plan, read_plan
from dtf_lightning.farm.plans.requests import requests_of
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.rules.needs import Need
from dtf_lightning.farm.server.models import TaskRequest

ROOT = Path(__file__).parents[3]

WHOLE = """
name: nightly
project: vision
priority: 3
defaults:
  env: {A: on, B: default}
  timeout: 1h30m
  labels: linux
tasks:
  build:
    run: [make, -j, 2]
    priority: 9
    needs: {cpu: 2, memory: 512}
    expires: 90
  test:
    name: test {{matrix.python}} on {{ matrix.device }}
    run: pytest -k "{{matrix.python}}" {{.Other}}
    after: build
    matrix:
      python: [3.10, 3.11]
      device: [cpu, gpu]
      exclude: [{python: 3.10, device: gpu}]
    needs:
      - amounts: {gpu: 1}
        labels: [fast]
        exclusive: true
      - labels: [slow]
    env: {B: "{{matrix.device}}"}
    secrets: [HF_TOKEN, KEY_2]
    inputs: {data: "sha256:0000000000000000000000000000000000000000000000000000000000000000", code: "git+https://h/r@0000000000000000000000000000000000000000"}
    retries: 2
    timeout: 5m
    artifacts: "*.xml"
    limits: {licence: 2}
    reuse: 7d
    folder: ./tests/
  clean:
    run: rm -rf /tmp/x
    after: {test: any, build: success}
"""


def test_a_whole_plan():
    plan = parse_plan(WHOLE)
    assert (plan.name, plan.project) == ("nightly", "vision")
    build, *tests, clean = plan.tasks
    assert (build.name, build.command, build.priority, build.expires) == ("build", ("make", "-j", "2"), 9, 90.0)
    assert build.needs == (Need(amounts={"cpu": 2.0, "memory": 512.0}, labels=("linux",)),)
    assert (build.environment, build.timeout) == ({"A": "on", "B": "default"}, 5400.0)
    assert [task.name for task in tests] == ["test 3.10 on cpu", "test 3.11 on cpu", "test 3.11 on gpu"]
    assert tests[0].command == ("sh", "-ec", 'pytest -k "3.10" {{.Other}}')
    assert tests[2].environment == {"A": "on", "B": "gpu"}
    assert [task.reuse for task in plan.tasks] == [0.0, *[604800.0] * 3, 0.0]
    assert tests[0].needs == (
        Need(amounts={"gpu": 1.0}, labels=("fast", "linux"), exclusive=True),
        Need(amounts={"cpu": 1}, labels=("slow", "linux")),
    )
    told = tests[0]
    assert (told.priority, told.retries, told.timeout, told.artifacts) == (3, 2, 300.0, ("*.xml",))
    assert told.inputs == {"data": f"sha256:{'0' * 64}", "code": f"git+https://h/r@{'0' * 40}"}
    assert (told.limits, told.folder, told.secrets) == ({"licence": 2}, "tests", ("HF_TOKEN", "KEY_2"))
    assert (plan.after, plan.after_any) == (
        {"build": (), "test": ("build",), "clean": ("build",)},
        {"build": (), "test": (), "clean": ("test",)},
    )
    assert clean.needs == (Need(amounts={"cpu": 1}, labels=("linux",)),)


def test_tries_gangs_arrays_and_what_is_outside():
    earlier = "01a22026-2e47-7552-8358-6572f7000000"
    text = f"""
        defaults: {{retries: {{times: 2, on: [failed, timeout], exit_codes: [75]}}}}
        tasks:
          a: {{run: x, gang: 4, after: {earlier}}}
          b: {{run: x, array: {{count: 7}}, retries: 1, after: {{a: success, {earlier}: any}}}}
    """
    plan = parse_plan(text)
    a, b = plan.tasks
    assert (a.retries, a.retry_on, a.retry_exit_codes, a.gang, a.array) == (2, ("failed", "timeout"), (75,), 4, 0)
    assert (b.retries, b.retry_on, b.retry_exit_codes, b.gang, b.array) == (1, (), (), 1, 7)
    assert (plan.after, plan.after_any) == ({"a": (earlier,), "b": ("a",)}, {"a": (), "b": (earlier,)})
    ids = iter(["1", "2"])
    first, second = requests_of(plan, "p", lambda is_array: next(ids) + "*" * is_array)
    assert (first["task_id"], first["dependencies"], first["after_any"]) == ("1", [earlier], [])
    assert (second["task_id"], second["dependencies"], second["after_any"]) == ("2*", ["1"], [earlier])


def test_the_least_plan():
    plan = parse_plan("tasks: {a: {run: x}}", "some/where.yaml")
    (task,) = plan.tasks
    assert (plan.name, plan.project, task.name, task.command) == ("where", "default", "a", ("sh", "-ec", "x"))
    assert (task.needs, task.timeout, task.environment) == ((), None, {})


def test_instances_without_a_name():
    plan = parse_plan("tasks: {t: {run: x, matrix: {a: [1, 2], b: [x]}}}")
    assert [task.name for task in plan.tasks] == ["t[1,x]", "t[2,x]"]


def test_the_example():
    """It is what docs/farm.md shows."""
    plan = read_plan(str(ROOT / "examples" / "plan.yaml"))
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs" / "farm.md").read_text(), re.MULTILINE | re.DOTALL)
    assert parse_plan(shown) == plan
    assert [task.name for task in plan.tasks if task.entry == "squares"] == [
        f"squares[{number},{power}]" for number, power in ((2, 2), (2, 3), (3, 2), (3, 3), (4, 2))
    ]


TYPO = "tasks:\n  build:\n    run: x\n    {}\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("task: {}", "f:1:1: unknown key 'task' in a plan; did you mean 'tasks'?"),
        ("name: x", "f:1:1: the plan has no tasks"),
        ("- x", "f:1:1: a plan is a mapping (key: value), got a list"),
        ("tasks: {}", "f:1:8: the plan has no tasks"),
        ("tasks: {a: x}", "f:1:12: the task 'a' is a mapping (key: value), got 'x'"),
        ("tasks: {a: {}}", "f:1:12: the task 'a' has no `run`"),
        ("tasks: {a: {run: }}", "f:1:17: run has no value"),
        ("tasks: {a: {run: []}}", "f:1:18: run is a shell line, or a list"),
        ("tasks: {a: {run: [[x]]}}", "f:1:19: each word of run is a text"),
        ("defaults: {run: x}\ntasks: {a: {run: x}}", "f:1:12: unknown key 'run' in defaults"),
        (TYPO.format("retrys: 2"), "f:4:5: unknown key 'retrys' in the task 'build'; did you mean 'retries'?"),
        (TYPO.format("retries: 101"), "f:4:14: retries is a whole number from 0 to 100, got 101"),
        (TYPO.format("retries: yes"), "f:4:14: retries is a whole number from 0 to 100, got True"),
        (
            TYPO.format("retries: {times: 2, on: lost}"),
            "f:4:29: on is one of failed, timeout, got 'lost'; a lost worker",
        ),
        (TYPO.format("retries: {on: failed}"), "f:4:14: retries says how many by `times`"),
        (
            TYPO.format("retries: {times: 2, exit_codes: [0]}"),
            "f:4:38: each of exit_codes is a whole number from 1 to 255",
        ),
        (TYPO.format("retries: {times: 1, on: timeout, exit_codes: [7]}"), "f:4:50: exit codes are those of attempts"),
        (TYPO.format("array: 0"), "f:4:12: array is a whole number from 1 to 100000"),
        (TYPO.format("array: {number: 3}"), "f:4:13: unknown key 'number' in array"),
        (TYPO.format("gang: 65"), "f:4:11: gang is a whole number from 1 to 64"),
        (TYPO.format("timeout: 5 min"), "f:4:14: timeout is a number of seconds above 0, or a text such as '90s'"),
        (TYPO.format("timeout: 0s"), "f:4:14: timeout is a number of seconds above 0"),
        (TYPO.format("timeout: .inf"), "f:4:14: timeout is a number of seconds above 0"),
        (TYPO.format("timeout: .nan"), "f:4:14: timeout is a number of seconds above 0"),
        (TYPO.format("needs: {gpu: many}"), "f:4:18: the amount of 'gpu' is a number from 0 up, got 'many'"),
        (TYPO.format("needs: {gpu: .nan}"), "f:4:18: the amount of 'gpu' is a number from 0 up"),
        (TYPO.format("needs: [{gpu: 1}]"), "f:4:14: unknown key 'gpu' in an alternative of needs; known are amounts"),
        (TYPO.format("needs: []"), "f:4:12: needs is an empty list"),
        (TYPO.format("needs: [{exclusive: 1}]"), "f:4:25: exclusive is true or false, got 1"),
        (TYPO.format("env: {A: }"), "f:4:13: the variable 'A' has no value; write ''"),
        (TYPO.format("env: {A=B: x}"), "f:4:11: 'A=B' is no name of a variable"),
        (TYPO.format("inputs: {a: https://h/a}"), "f:4:17: 'https://h/a' is no input; expected"),
        (TYPO.format("inputs: {../a: b}"), "f:4:14: an input's place '../a' must be a path below"),
        (TYPO.format("secrets: [A, B-C]"), "f:4:18: 'B-C' is no name of a secret"),
        (TYPO.format("limits: {x: 0}"), "f:4:17: limits of 'x' is a whole number from 1"),
        (TYPO.format("reuse: often"), "f:4:12: reuse is a number of seconds above 0, or a text such as '90s'"),
        (TYPO.format("folder: ../x"), "f:4:13: folder '../x' must lie below"),
        (TYPO.format("after: biuld"), "f:4:12: the task 'build' comes after 'biuld', which is not here; did you mean"),
        (TYPO.format("after: {build: ok}"), "f:4:20: after 'build' is one of success, any, got 'ok'"),
        (TYPO.format("after: [build]"), "f:2:3: tasks come after each other in a circle: build after build"),
        (TYPO.format("name: '{{matrix.x}}'"), "f:4:11: {{matrix.x}} stands in a task without a matrix"),
        (
            "tasks:\n  a: {run: x, after: c}\n  b: {run: x, after: {a: any}}\n  c: {run: x, after: b}\n",
            "f:2:3: tasks come after each other in a circle: a after c after b after a",
        ),
        ("tasks:\n  a: {run: x}\n  a: {run: y}\n", "f:3:3: 'a' stands here twice; the first is in line 2"),
        ("tasks:\n  a: {run: x}\n  b: {run: y, name: a}\n", "f:3:21: two tasks are called 'a', of 'a' and 'b'"),
        (
            "tasks: {a: {run: x, name: 'n {{matrix.p}}', matrix: {p: [1], q: [1, 2]}}}",
            "f:1:27: two tasks are called 'n 1', of 'a' and 'a'; let `name` hold each axis of the matrix",
        ),
        (
            "tasks: {a: {run: 'x {{matrix.pythn}}', matrix: {python: [1]}}}",
            "f:1:18: {{matrix.pythn}}: the matrix has no axis 'pythn'; did you mean 'python'?",
        ),
    ],
)
def test_refused(text, told):
    with pytest.raises(SettingsError) as caught:
        parse_plan(text, "f")
    assert str(caught.value).startswith(told)


def test_too_much():
    many = json.dumps(list(range(100)))
    axes = f"{{a: {many}, b: {many}}}"
    with pytest.raises(SettingsError, match="f:1:8: the plan has 10001 tasks, 10000 are allowed"):
        parse_plan(f"tasks: {{x: {{run: x}}, y: {{run: x, matrix: {axes}}}}}", "f")
    half = f"{{a: {json.dumps(list(range(50)))}, b: {many}}}"
    with pytest.raises(SettingsError, match="25000000 dependencies on each other, 200000 are allowed: let one task"):
        parse_plan(f"tasks: {{x: {{run: x, matrix: {half}}}, y: {{run: x, after: x, matrix: {half}}}}}", "f")


class TestRequests:
    def requests(self, text: str, **fields):
        numbers = itertools.count(1)
        return requests_of(
            parse_plan(text), "the-plan", lambda _: new_task_id(1_800_000_000.0, next(numbers)), **fields
        )

    def test_files_of_here_are_sent(self):
        plan = parse_plan("tasks: {a: {run: x, inputs: {d: ../data, e: data}}}")
        (request,) = requests_of(plan, "p", lambda _: "id", send=lambda path: f"sent {path}")
        assert request["inputs"] == {"d": "sent ../data", "e": "sent data"}
        with pytest.raises(SettingsError, match="is a path of another machine"):
            requests_of(plan, "p", lambda _: "id")

    def test_each_is_one_that_the_server_takes(self):
        requests = self.requests(WHOLE, source="0" * 64, folder="inner")
        assert all(TaskRequest(**json.loads(json.dumps(request))) for request in requests)
        assert [request["name"] for request in requests] == [task.name for task in parse_plan(WHOLE).tasks]
        assert {(request["plan"], request["project"], request["source"]) for request in requests} == {
            ("the-plan", "vision", "0" * 64)
        }
        assert [request["folder"] for request in requests] == ["inner", *["inner/tests"] * 3, "inner"]

    def test_all_instances_and_dependencies_first(self):
        """Also where the file has it the other way round."""
        requests = self.requests(
            "tasks:\n"
            "  last: {run: x, after: {t: any, first: success}}\n"
            "  t: {run: x, after: [first], matrix: {a: [1, 2]}}\n"
            "  first: {run: x}\n"
        )
        by_name = {request["name"]: request for request in requests}
        assert list(by_name) == ["first", "t[1]", "t[2]", "last"]
        ids = {name: request["task_id"] for name, request in by_name.items()}
        assert len(set(ids.values())) == 4
        assert by_name["t[2]"]["dependencies"] == [ids["first"]]
        assert by_name["last"]["dependencies"] == [ids["first"]]
        assert by_name["last"]["after_any"] == [ids["t[1]"], ids["t[2]"]]


class TestSchema:
    def test_it_is_published(self):
        text = (ROOT / "docs" / "plan.schema.json").read_text()
        assert json.loads(text) == plan_schema(), "run python docs/generate.py"

    def test_it_has_every_key(self):
        schema = plan_schema()
        assert schema["properties"].keys() == PLAN_KEYS.keys()
        task = schema["properties"]["tasks"]["additionalProperties"]
        assert task["properties"].keys() == TASK_KEYS.keys()
        alternative = task["properties"]["needs"]["oneOf"][1]["items"]
        assert alternative["properties"].keys() == ALTERNATIVE_KEYS.keys()

    def test_every_key_is_in_the_docs(self):
        page = (ROOT / "docs" / "farm.md").read_text()
        section = page.partition("\n## Plans\n")[2].partition("\n## ")[0]
        assert [name for name in {*PLAN_KEYS, *TASK_KEYS} if f"`{name}`" not in section] == []

    @pytest.mark.parametrize(("text", "fits"), [("90s", True), ("1h30m", True), ("5 m", False), ("s", False)])
    def test_durations(self, text, fits):
        """The schema's pattern and the reader agree."""
        assert bool(re.search(DURATION_PATTERN, text)) is fits
        plan = f"tasks: {{a: {{run: x, timeout: {text}}}}}"
        if fits:
            parse_plan(plan)
        else:
            with pytest.raises(SettingsError):
                parse_plan(plan)


class TestSchedules:
    def test_both_forms(self):
        from dtf_lightning.farm.plans.plan import PlanSchedule
        from dtf_lightning.farm.rules.submissions.schedules import Overlap

        short = parse_plan("{schedule: '0 2 * * *', tasks: {a: {run: a}}}")
        assert short.schedule == PlanSchedule(cron="0 2 * * *", timezone="UTC", overlap=Overlap.SKIP)
        told = "{schedule: {cron: '0 2 * * *', timezone: Asia/Tokyo, overlap: queue}, tasks: {a: {run: a}}}"
        expected = PlanSchedule(cron="0 2 * * *", timezone="Asia/Tokyo", overlap=Overlap.QUEUE)
        assert parse_plan(told).schedule == expected
        assert parse_plan("tasks: {a: {run: a}}").schedule is None

    @pytest.mark.parametrize(
        ("schedule", "told"),
        [
            ("[1]", "schedule is a text or a number, got a list"),
            ("{timezone: UTC}", "schedule says when by `cron`"),
            ("{cron: '0 2 * * *', overlap: skipp}", "overlap is one of skip, queue, got 'skipp'; did you mean 'skip'?"),
            ("{cron: '0 2 * * *', zone: UTC}", "unknown key 'zone' in schedule"),
            ("'0 25 * * *'", "the times '0 25 * * *' cannot be read: bad hour"),
        ],
    )
    def test_what_is_wrong_is_told_with_its_place(self, schedule, told):
        with pytest.raises(SettingsError) as error:
            parse_plan(f"schedule: {schedule}\ntasks: {{a: {{run: a}}}}", "p.yaml")
        assert str(error.value).startswith("p.yaml:1:")
        assert told in str(error.value)


class TestKeys:
    def test_of_tasks_and_of_the_plan(self):
        plan = parse_plan("{key: K, tasks: {a: {run: a, matrix: {n: [1, 2]}, key: 'a-{{matrix.n}}'}}}")
        assert (plan.key, [task.key for task in plan.tasks]) == ("K", ["a-1", "a-2"])

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("{tasks: {a: {run: a, matrix: {n: [1, 2]}, key: k}}}", "let `key` hold each axis of the matrix"),
            ("{tasks: {a: {run: a, key: k}, b: {run: b, key: k}}}", "two tasks have the key 'k', of 'a' and 'b'"),
            ("{schedule: '0 2 * * *', key: k, tasks: {a: {run: a}}}", "a plan with a `schedule` has no `key`"),
            ("{schedule: '0 2 * * *', tasks: {a: {run: a, key: k}}}", "a plan with a `schedule` has no `key`"),
        ],
    )
    def test_what_is_wrong(self, text, told):
        with pytest.raises(SettingsError, match=r"p\.yaml:1:") as error:
            parse_plan(text, "p.yaml")
        assert told in str(error.value)
