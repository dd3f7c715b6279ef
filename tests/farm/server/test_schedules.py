"""Schedules as people have them: `dtf farm run PLAN.yaml`, the commands and the routes, on one coordinator."""

from __future__ import annotations

import calendar
import itertools
import json
from datetime import UTC, datetime

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


def decided(memory) -> float:
    return decode(Kind.SCHEDULE, memory.get("/dtf/farm/f/schedules/nightly").value).decided


def next_time() -> str:
    """Of the plan's schedule, in a leap year: as `dtf` writes it."""
    now = datetime.now(UTC)
    years = filter(calendar.isleap, itertools.count(now.year))
    return next(f"{year}-02-29T01:30:00.000Z" for year in years if datetime(year, 2, 29, 1, 30, tzinfo=UTC) > now)


def outcome(client, name: str) -> str:
    return client.schedule(name)["runs"][0]["outcome"]


def test_a_plan_with_a_schedule_is_registered_and_not_run(dtf, client, memory):
    """With the files that it takes along (`test_upkeep.py` has that they stay), in the place of the one of its name."""
    code, out, err = dtf("run", "plan.yaml")
    assert (code, out) == (0, "nightly\n")
    assert f"the schedule nightly is registered; its next time is {next_time()}" in err
    code, out, err = dtf("submit", "plan.yaml")
    assert (code, out) == (0, "nightly\n")
    assert "is registered, in the place of the one of this name;" in err
    assert list(client.tasks()) == []
    (one,) = client.schedules()
    assert (one["name"], one["overlap"], one["timezone"], one["last_run"]) == ("nightly", "skip", "Europe/Berlin", None)
    record = decode(Kind.SCHEDULE, memory.get("/dtf/farm/f/schedules/nightly").value)
    assert len(record.digests) == 2
    assert record.source in record.digests


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
    client.connection.ask("POST", "/api/schedules/nightly/run", plan_id=run["plan_id"])  # as after a lost answer
    assert len(client.schedule("nightly")["runs"]) == 1
    _, out, _ = dtf("schedules")
    assert "30 2 29 2 * (Europe/Berlin)" in out
    assert out.splitlines()[1].endswith("failed")
    _, out, _ = dtf("schedule", "nightly")
    assert run["plan_id"] in out
    assert "by hand" in out


def test_pause_resume_and_remove(dtf, memory):
    """What would have come while it was paused is not caught up."""
    dtf("run", "plan.yaml")
    before = decided(memory)
    assert dtf("schedule", "nightly", "pause")[:2] == (0, "nightly: paused\n")
    assert json.loads(dtf("schedule", "nightly", "--json")[1])["next_time"] is None
    assert dtf("schedule", "nightly", "resume")[:2] == (0, f"nightly: {next_time()}\n")
    assert decided(memory) > before
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
