"""Schedules as people have them: `dtf farm run PLAN.yaml`, the commands and the routes, on one coordinator."""

from __future__ import annotations

import json

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.clock import poll_until
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.codec import decode
from dtf_lightning.farm.record.keys import Kind
from dtf_lightning.farm.rules.attempts import OutcomeKind
from support.farm.server import DEADLINE

pytestmark = pytest.mark.process

PLAN = """
name: nightly
schedule: {cron: "30 2 29 2 *", timezone: Europe/Berlin}
tasks:
  numbers: {run: n, inputs: {data: ../data.txt}}
  squares: {run: s, after: numbers}
"""
EVERY_MINUTE = "{name: often, schedule: '* * * * *', tasks: {a: {run: a}}}"


@pytest.fixture
def dtf(coordinator, tmp_path, monkeypatch, capsys):
    """Runs `dtf farm ...` in this process; returns its exit code and what it has printed."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    (folder / "plan.yaml").write_text(PLAN)
    (tmp_path / "data.txt").write_text("42")

    def run(*arguments: str) -> tuple[int, str, str]:
        where = ["--farm", coordinator.url, "--token-file", str(coordinator.token_file)]
        capsys.readouterr()
        code = main(["farm", arguments[0], *where, *arguments[1:]])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def outcome(client, name: str) -> str:
    return client.schedule(name)["runs"][0]["outcome"]


def run_by_hand(client, worker, name: str, kind: OutcomeKind = OutcomeKind.COMPLETED) -> str:
    plan = client.run_schedule(name)
    worker.end(worker.next())
    worker.end(worker.next(), kind)
    poll_until(lambda: outcome(client, name) not in ("submitting", "running"), DEADLINE, "the run to end")
    return plan


@pytest.mark.parametrize("command", ["run", "submit"])
def test_a_plan_with_a_schedule_is_registered_and_not_run(dtf, client, command):
    code, out, err = dtf(command, "plan.yaml")
    assert (code, out) == (0, "nightly\n")
    assert "the schedule nightly is registered; its next time is 2028-02-29T01:30:00.000Z" in err
    assert list(client.tasks()) == []
    code, out, err = dtf(command, "plan.yaml")
    assert "is registered, in the place of the one of this name;" in err
    (one,) = client.schedules()
    assert (one["name"], one["overlap"], one["timezone"], one["last_run"]) == ("nightly", "skip", "Europe/Berlin", None)


def test_a_run_by_hand_with_all_that_the_plan_takes_along(dtf, client, worker):
    dtf("run", "plan.yaml")
    code, out, _ = dtf("schedule", "nightly", "run-now")
    first = worker.next()
    assert (code, out) == (0, f"{first.specification.plan}\n")
    assert first.specification.name == "numbers"
    assert first.specification.inputs["data"].startswith("sha256:")
    assert first.specification.source
    worker.end(first)
    worker.end(worker.next(), OutcomeKind.FAILED)
    poll_until(lambda: outcome(client, "nightly") == "failed", DEADLINE, "the run to end")
    (run,) = client.schedule("nightly")["runs"]
    assert (run["counts"], run["by_hand"], run["missed"]) == ({"completed": 1, "failed": 1}, True, 0)
    _, out, _ = dtf("schedules")
    assert "30 2 29 2 * (Europe/Berlin)" in out
    assert out.splitlines()[1].endswith("failed")
    _, out, _ = dtf("schedule", "nightly")
    assert run["plan_id"] in out
    assert "by hand" in out


def test_asked_for_twice_is_one_run(dtf, client, worker):
    dtf("run", "plan.yaml")
    plan = run_by_hand(client, worker, "nightly")
    client.connection.ask("POST", "/api/schedules/nightly/run", plan_id=plan)
    assert [run["plan_id"] for run in client.schedule("nightly")["runs"]] == [plan]
    assert len(list(client.tasks())) == 2


def test_pause_resume_and_remove(dtf, client):
    dtf("run", "plan.yaml")
    assert dtf("schedule", "nightly", "pause")[:2] == (0, "nightly: paused\n")
    assert json.loads(dtf("schedule", "nightly", "--json")[1])["next_time"] is None
    assert dtf("schedule", "nightly", "resume")[:2] == (0, "nightly: 2028-02-29T01:30:00.000Z\n")
    assert dtf("schedule", "nightly", "remove")[:2] == (0, "nightly: removed\n")
    assert json.loads(dtf("schedules", "--json")[1]) == []
    code, _, err = dtf("schedule", "nightly", "pause")
    assert code == 1
    assert "this farm knows no schedule 'nightly'; it has none" in err


def test_what_could_not_be_submitted_is_refused_at_once(client):
    with pytest.raises(FarmRefused, match="no project is called 'vision'"):
        client.send_plan("{project: vision, schedule: '0 2 * * *', tasks: {a: {run: a}}}")
    with pytest.raises(FarmRefused, match="the plan:1:12: schedule: the times '0 2 \\* \\*' have 4 fields"):
        client.send_plan("{schedule: '0 2 * *', tasks: {a: {run: a}}}")
    with pytest.raises(FarmRefused, match="no '/'"):
        client.send_plan("{name: a/b, schedule: '0 2 * * *', tasks: {a: {run: a}}}")
    assert client.schedules() == []


def test_paused_times_are_not_caught_up(client, coordinator, memory):
    client.send_plan(EVERY_MINUTE)
    client.change_schedule("often", "pause")
    before = decode(Kind.SCHEDULE, memory.get("/dtf/farm/f/schedules/often").value).decided
    client.change_schedule("often", "resume")
    assert decode(Kind.SCHEDULE, memory.get("/dtf/farm/f/schedules/often").value).decided > before


def test_it_names_the_files_that_have_to_stay(dtf, memory):
    """What it takes along, and its inputs (`test_upkeep.py` has that they stay)."""
    dtf("run", "plan.yaml")
    record = decode(Kind.SCHEDULE, memory.get("/dtf/farm/f/schedules/nightly").value)
    assert len(record.digests) == 2
    assert record.source in record.digests
