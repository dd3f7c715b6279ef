"""`train` in plans: what it becomes, and what its errors say."""

from __future__ import annotations

import json

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.plans.reading import parse_plan
from dtf_lightning.farm.plans.requests import requests_of
from dtf_lightning.farm.record.array_writes import instance_of
from dtf_lightning.farm.record.task_id import array_id, new_task_id
from dtf_lightning.farm.server.models import TaskRequest

PLAN = """
tasks:
  data: {run: ./prepare}
  fit:
    train:
      script: train.py
      args: [--seed, "{{matrix.seed}}", --lr, 0.10]
      workers: 1:08
      endpoint: etcd.lab:2379
      python: python3
      options: {user: u}
      suspend_for: 7
    needs: {gpu: 1}
    labels: fast
    after: data
    matrix: {seed: [1, 2]}
  test: {run: pytest, after: fit}
"""


def requests(text):
    ids = iter(range(100))

    def new_id(is_array):
        made = new_task_id(1e9, next(ids) << 30)
        return array_id(made) if is_array else made

    return [TaskRequest(**json.loads(json.dumps(one))) for one in requests_of(parse_plan(text), "p", new_id)]


def test_a_plan_with_trainings():
    """Each instance of the matrix is a training of its own, with a run of its own; what comes after it waits for its end."""
    data, first, second, test = requests(PLAN)
    assert (first.array, first.training, first.priority, first.name) == (8, 1, -10, "fit[1]")
    assert (first.suspend_for, data.suspend_for) == (7, None)
    assert first.dependencies == (data.task_id,)
    assert test.dependencies == (first.task_id, second.task_id)
    (need,) = first.needs
    assert (need.amounts, need.labels) == ({"gpu": 1.0}, ("fast",))
    part = instance_of(second.task_id, second.specification(0.0), 3)
    assert part.command == (
        "python3",
        "-m",
        "torch.distributed.run",
        "--nnodes=1:8",
        "--nproc-per-node=1",
        "--rdzv-backend=etcd",
        "--rdzv-endpoint=etcd.lab:2379",
        f"--rdzv-id={second.task_id}",
        "--rdzv-conf=resume=true,progress=$DTF_FARM_RESULTS/training.jsonl,user=u,mode=live",
        "train.py",
        "--seed",
        "2",
        "--lr",
        "0.10",
    )


@pytest.mark.parametrize(
    ("text", "priority"),
    [
        ("tasks: {a: {train: {script: s, endpoint: e}, priority: 3}}", 3),
        ("priority: 4\ntasks: {a: {train: {script: s, endpoint: e}}}", 4),
        ("defaults: {priority: 5}\ntasks: {a: {train: {script: s, endpoint: e}}}", 5),
        ("tasks: {a: {train: {script: s, endpoint: e}}}", -10),
    ],
)
def test_priority(text, priority):
    assert [one.priority for one in requests(text)] == [priority]


@pytest.mark.parametrize(
    ("task", "told"),
    [
        ("{train: x}", "f:1:20: train is a mapping (key: value), got 'x'"),
        ("{train: {endpoint: e}}", "f:1:20: train has no `script`"),
        ("{train: {script: s}}", "f:1:20: train has no `endpoint`"),
        (
            "{train: {script: s, endpoint: e, worker: 1:2}}",
            "f:1:45: unknown key 'worker' in train; did you mean 'workers'?",
        ),
        ("{train: {script: s, endpoint: e, workers: 4}}", "f:1:54: the workers '4' cannot be read; expected MIN:MAX"),
        ("{train: {script: s, endpoint: e, workers: 3:2}}", "f:1:54: a training with 3 to 2 workers"),
        ("{train: {script: s, endpoint: e, workers: 0:2}}", "f:1:54: a training with 0 to 2 workers"),
        ("{train: {script: s, endpoint: e, workers: 1:65}}", "f:1:54: a training with 1 to 65 workers"),
        ("{train: {script: s, endpoint: e, args: [[x]]}}", "f:1:52: each of args is a text or a number, got a list"),
        ("{train: {script: s, endpoint: e, options: {a: 'b,c'}}}", "f:1:55: options 'a': names have no ','"),
        ("{train: {script: '{{matrix.x}}', endpoint: e}}", "f:1:29: {{matrix.x}} stands in a task without a matrix"),
        (
            "{train: {script: s, endpoint: e, suspend_for: 5, options: {mode: restart}}}",
            "f:1:58: a training in restart mode cannot be suspended",
        ),
        (
            "{train: {script: s, endpoint: e, suspend_for: -10}}",
            "f:1:58: suspend_for is a priority above the training's own",
        ),
        ("{run: x, train: {script: s, endpoint: e}}", "f:1:21: the task 'a' has a `run` and a `train`"),
        ("{train: {script: s, endpoint: e}, args: [1]}", "f:1:46: `args` of the task 'a' are those of a `call`"),
        ("{train: {script: s, endpoint: e}, reuse: true}", "f:1:46: the training 'a' cannot `reuse` a result"),
        ("{train: {script: s, endpoint: e}, array: 2}", "f:1:46: the training 'a' has no `array`: its `workers` say"),
    ],
)
def test_refused(task, told):
    with pytest.raises(SettingsError) as caught:
        parse_plan(f"tasks: {{a: {task}}}", "f")
    assert str(caught.value).startswith(told)


def test_a_gang_of_the_defaults_is_refused():
    with pytest.raises(SettingsError, match="f:2:13: the training 'a' has no `gang`, which `defaults` gives it"):
        parse_plan("defaults: {gang: 2}\ntasks: {a: {train: {script: s, endpoint: e}}}", "f")
