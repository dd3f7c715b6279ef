"""`orchestrate` in plans: what it becomes, and what its errors say."""

from __future__ import annotations

import re
import shlex

import pytest

from dtf_lightning.__main__ import build_parser
from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.orchestrate.splitting import Strategy
from dtf_lightning.farm.plans.reading import parse_plan
from dtf_lightning.farm.record.task_id import new_task_id
from dtf_lightning.farm.server.orchestrations.models import OrchestrateRequest
from dtf_lightning.farm.server.schedules.expanding import SentPlan
from support.source_tree import ROOT

PLAN = """
name: evaluation
project: p
tasks:
  data: {run: ./prepare}
  score:
    call: bench:score
    kwargs: {model: "{{matrix.model}}"}
    orchestrate:
      strategy: data_parallel
      inputs: 1000
      pieces: 2
      merge: {fields: {loss: mean, n: sum}}
    matrix: {model: [a, b]}
    needs: {gpu: 1}
    retries: 1
    timeout: 5m
    inputs: {words: "https://x/words#sha256=DIGEST"}
    after: data
""".replace("DIGEST", "0" * 64)
ID = new_task_id(1e9, 7)


def test_a_plan_with_a_job():
    """Each instance of the matrix is a job; what its subtasks need stands where it stands for a task."""
    _, (data,) = SentPlan(text=PLAN).expand(ID)
    first, second = SentPlan(text=PLAN).jobs(ID)
    assert first.task_id != second.task_id
    assert (first.strategy, first.merge) == (Strategy.DATA_PARALLEL, {"fields": {"loss": "mean", "n": "sum"}})
    assert (first.retry_limit, first.subtask_timeout, first.priority) == (1, 300.0, 0)
    told = second.task_data
    assert (told.name, told.call, told.kwargs) == ("score[b]", "bench:score", {"model": "b"})
    assert (told.inputs, told.pieces, told.project) == (1000, 2, "p")
    assert told.needs[0].amounts == {"gpu": 1.0}
    assert told.dependencies == (data.task_id,)
    assert list(told.files) == ["words"]
    assert SentPlan(text=PLAN).jobs(ID) == [first, second]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("tasks: {a: {run: x, orchestrate: {}}}", "says what is divided"),
        ("tasks: {a: {orchestrate: {inputs: 3}}}", "'a' has no `run`"),
        ("tasks: {a: {run: x, orchestrate: {inptus: 3}}}", "inputs"),
        ("tasks: {a: {run: x, orchestrate: {inputs: 0}}}", "inputs is a number from 1 up, or a list"),
        ("tasks: {a: {run: x, orchestrate: {inputs: 3, pieces: many}}}", "pieces is a whole number from 1 to 100"),
        ("tasks: {a: {run: x, orchestrate: {functions: []}}}", "functions is a list of 1 to 1000 words"),
        ("tasks: {a: {run: x, orchestrate: {inputs: 3, strategy: data}}}", "strategy is one of auto, data_parallel"),
        ("tasks: {a: {run: x, orchestrate: {inputs: 3, merge: average}}}", "expected one of concatenate"),
        ("tasks: {a: {run: x, array: 2, orchestrate: {inputs: 3}}}", "has no `array`"),
        (
            "tasks: {a: {run: x, orchestrate: {inputs: 3}}, b: {run: y, after: a}}",
            "'b' comes after 'a', which is split",
        ),
        ("schedule: '0 2 * * *'\ntasks: {a: {run: x, orchestrate: {inputs: 3}}}", "a plan with a `schedule` takes no"),
        ("key: k\ntasks: {a: {run: x, orchestrate: {inputs: 3}}}", "a plan with a `key` takes no `orchestrate`"),
    ],
)
def test_errors_name_the_place(text, error):
    with pytest.raises(SettingsError, match=error) as caught:
        parse_plan(text, "plan.yaml")
    assert "plan.yaml:" in str(caught.value)


def test_the_examples_of_the_docs():
    """Its plan and its request are read, and its commands are known with their options."""
    page = (ROOT / "docs" / "orchestration.md").read_text()
    examples = dict(re.findall(r"```(sh|yaml|json)\n(.*?)```", page, re.DOTALL))
    (job,) = SentPlan(text=examples["yaml"]).jobs(ID)
    assert (job.task_data.inputs, job.retry_limit, len(job.task_data.dependencies)) == (10_000, 2, 1)
    asked = OrchestrateRequest.model_validate_json(examples["json"])
    assert asked.task_data.functions == ("latency", "throughput", "memory")
    commands = [shlex.split(line, comments=True) for line in examples["sh"].splitlines()]
    assert len(commands) == 4
    told = [build_parser().parse_args(words[1:]) for words in commands]
    assert [vars(one).get("merge") for one in told] == ["mean", None, "vote", None]
