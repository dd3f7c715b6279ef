"""`call` in plans: what it becomes, and what its errors say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.calls.spelling import MODULE, check_function, imported
from dtf_lightning.farm.plans.reading import parse_plan
from dtf_lightning.farm.plans.requests import requests_of
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.server.models import TaskRequest

PLAN = """
tasks:
  mean:
    call: statistics:mean
    args: [[1, 2, 3.5]]
  train:
    call: app.models:train.fast
    args: ["{{matrix.seed}}", "seed {{matrix.seed}}", true, null, {deep: ["{{ matrix.net }}"]}]
    kwargs: {net: "{{matrix.net}}", lr: 0.1}
    after: mean
    matrix: {seed: [1, 2], net: [wide, "off"]}
"""


def test_a_plan_with_calls():
    """A text that is nothing but an axis is what YAML reads in its value, as everywhere in YAML."""
    requests = requests_of(parse_plan(PLAN), "p", lambda _: new_task_id(1e9))
    mean, *trains = [TaskRequest(**json.loads(json.dumps(request))) for request in requests]
    assert (mean.call, mean.args, mean.kwargs, mean.command) == ("statistics:mean", ([1, 2, 3.5],), {}, ())
    first, last = trains[0], trains[-1]
    assert first.args == (1, "seed 1", True, None, {"deep": ["wide"]})
    assert first.kwargs == {"net": "wide", "lr": 0.1}
    assert (last.args[0], last.kwargs["net"]) == (2, False)
    told = last.specification(1.0)
    assert told.command[:5] == ("python", "-P", "-m", MODULE, "app.models:train.fast")
    assert json.loads(told.command[5]) == {"args": list(last.args), "kwargs": last.kwargs}
    assert (told.call, told.name, told.is_pickled) == ("import", "train[2,off]", False)


def test_the_example():
    """It is what docs/farm.md shows."""
    page = (Path(__file__).parents[3] / "docs" / "farm.md").read_text().partition("\n## Functions\n")[2]
    (shown,) = re.findall(r"^```yml\n(.*?)^```", page.partition("\n## ")[0], re.MULTILINE | re.DOTALL)
    mean, *trains = parse_plan(shown).tasks
    assert (mean.call, mean.args) == ("statistics:mean", ([1, 2, 6],))
    assert [task.kwargs["seed"] for task in trains] == [1, 2, 3]


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("{run: x, call: 'a:b'}", "f:1:21: the task 'a' has a `run` and a `call`"),
        ("{run: x, args: [1]}", "f:1:21: `args` of the task 'a' are those of a `call`"),
        ("{call: statistics.mean}", "f:1:19: 'statistics.mean' names no function; expected package.module:function"),
        ("{call: 'a:b', args: 1}", "f:1:32: args is a list, got 1"),
        ("{call: 'a:b', kwargs: [1]}", "f:1:34: kwargs is a mapping (key: value), got a list"),
        ("{call: 'a:b', kwargs: {x y: 1}}", "f:1:35: 'x y' is no name of an argument"),
        ("{call: 'a:b', args: [.nan]}", "f:1:33: .nan is no number that JSON can hold"),
        ("{call: 'a:b', args: ['{{matrix.x}}']}", "f:1:33: {{matrix.x}} stands in a task without a matrix"),
    ],
)
def test_what_is_wrong(task, told):
    with pytest.raises(SettingsError, match=re.escape(told)):
        parse_plan(f"tasks: {{a: {task}}}", "f")


@pytest.mark.parametrize("name", ["f", ":f", "a:", "a b:f", "a:f()", "a:f:g", "a..b:f", "1a:f", "a/b:f"])
def test_what_names_no_function(name):
    with pytest.raises(SettingsError, match=r"names no function; expected package\.module:function"):
        check_function(name)


def test_arguments_that_json_cannot_hold():
    with pytest.raises(SettingsError, match="the arguments of a:f are not what JSON can hold"):
        imported("a:f", [{1, 2}], {})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({}, "got none of them"),
        ({"command": ["x"], "call": "a:f"}, "got several of them"),
        ({"command": ["x"], "args": [1]}, "are those of a `call`, which is not here"),
        ({"call": "a.f"}, "'a.f' names no function"),
        ({"call": "a:f", "args": ["x" * 100_000]}, "over 100000 characters"),
        ({"pickled": {"function": "x", "arguments": "sha256:" + "0" * 64, "index": 0}}, "'x' is no input"),
    ],
)
def test_what_the_api_refuses(fields, told):
    with pytest.raises(ValueError, match=told):
        TaskRequest(task_id=new_task_id(1e9), **fields)
