"""A pilot job's worker leaves by itself: `dtf farm worker --until-idle`."""

from __future__ import annotations

import asyncio

import pytest

from dtf_lightning.__main__ import build_parser
from dtf_lightning.farm.worker.service import main


class Played:
    """A worker as far as it is looked at; on the way it has `work` for so many looks, then none."""

    def __init__(self, work: int, *, begins: int = 0, away: int = 0) -> None:
        self._looks = iter(
            [*[("work", 0)] * work, *[("begun", one) for one in range(1, begins + 1)], *[("away", 0)] * away]
        )
        self.has_work = False
        self.num_begun = 0
        self.connected = asyncio.Event()
        self.ended = asyncio.get_running_loop().create_future()
        self.looks = 0
        self.left_after: int | None = None

    async def stopped(self) -> None:
        """Each wait for the end is one look."""
        self.looks += 1
        what, number = next(self._looks, ("", self.num_begun))
        self.has_work = what == "work"
        self.num_begun = number or self.num_begun
        (self.connected.clear if what == "away" else self.connected.set)()
        await asyncio.shield(self.ended)

    def drain(self) -> None:
        self.left_after = self.looks


@pytest.mark.parametrize("fields", [{"work": 3}, {"work": 0, "begins": 3}, {"work": 0, "away": 3}])
def test_it_leaves_when_it_has_had_nothing_to_do(fields, monkeypatch):
    """Work, tasks too short to be seen, and having no coordinator put that off."""
    monkeypatch.setattr(main, "LOOK", 0.01)
    said = []

    async def run() -> int | None:
        worker = Played(**fields)
        await main._leave_when_idle(worker, 0.01, said.append)
        return worker.left_after

    left_after = asyncio.run(run())
    assert left_after is not None
    assert left_after > 3
    assert said == ["it has had no task for 0.01 s and leaves"]


def test_one_that_is_stopped_before_says_nothing():
    async def run() -> None:
        worker = Played(0)
        worker.ended.set_result(None)
        await main._leave_when_idle(worker, 600.0, pytest.fail)
        assert worker.left_after is None

    asyncio.run(run())


@pytest.mark.parametrize(("text", "seconds"), [("10m", 600.0), ("90", 90.0), ("1h30m", 5400.0)])
def test_the_option(text, seconds):
    assert build_parser().parse_args(["farm", "worker", "--until-idle", text]).until_idle == seconds


def test_what_is_no_time(capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args(["farm", "worker", "--until-idle", "soon"])
    assert "expected seconds, or a text such as 60s or 10m, got 'soon'" in capsys.readouterr().err
