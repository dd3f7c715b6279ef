"""Calls through a coordinator: what workers are told, and how what was returned comes back."""

from __future__ import annotations

import time

import pytest

from dtf_lightning.farm.calls.returned import write_told
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.task_id import new_task_id
from support.farm.server import DEADLINE

pytestmark = pytest.mark.process


def test_a_call_and_its_value(client, worker, coordinator):
    """It is a command, for whoever lists tasks; its value is in the task, in the results and in the list of results."""
    plan = client.submit_plan({"tasks": {"mean": {"call": "statistics:mean", "args": [[1, 2]]}}})
    order = worker.next()
    assert (order.specification.call, order.specification.command[4]) == ("import", "statistics:mean")
    told = {"value": {"of": [1.5, None]}}
    worker.end(order, returned=write_told(told))
    task = client.wait(order.task, DEADLINE)
    assert task.raw["results"]["returned"] == told
    (row,) = client.results(plan=plan)
    assert row["raw_data"]["returned"] == told
    found = client.query("SELECT returned->'$.value.of[0]' FROM farm.results")
    assert found["rows"] == [["1.5"]]


def test_a_command_returns_nothing(client, worker):
    task = client.submit(["x"])
    worker.end(worker.next())
    assert client.wait(task, DEADLINE).raw["results"]["returned"] is None


def test_pickles_are_refused_by_default(client):
    """By name, and before anything is accepted: the setting says how to have it otherwise."""
    digest = "sha256:" + "0" * 64
    sent = {"function": digest, "arguments": digest, "index": 0}
    with pytest.raises(
        FarmRefused, match="takes no functions that travel by cloudpickle; set `allow_pickle: true`"
    ) as no:
        client.submit_all([{"task_id": new_task_id(time.time()), "pickled": sent, "name": "f"}])
    assert no.value.status == 422
    assert list(client.tasks()) == []
