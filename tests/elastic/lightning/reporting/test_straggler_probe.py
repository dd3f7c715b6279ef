"""How long a worker is busy with a step of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dtf_lightning.elastic.events import ELASTIC_EVENTS, WorkersPaced
from dtf_lightning.elastic.lightning.reporting import straggler_probe
from dtf_lightning.elastic.lightning.reporting.straggler_probe import Pace, workers
from dtf_lightning.elastic.rules.generation import Generation, Member
from dtf_lightning.events.log import read_events
from support.elastic.run_of_one import RunOfOne, fit

if TYPE_CHECKING:
    import pytest


class Clock:
    """Moved by hand."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    wall = monotonic


def test_collectives_are_no_work_of_ones_own() -> None:
    """A forward pass of 5 s, 3 of them in a logged metric's all-reduce; a collective outside of it does not matter."""
    clock = Clock()
    mine = Pace(clock)
    with mine.collective():
        clock.now += 7
    for _ in range(2):
        mine.forward_begins()
        clock.now += 1
        with mine.collective():
            clock.now += 3
        clock.now += 1
        mine.forward_done()
    assert mine._forward == 4


def test_workers_by_rank() -> None:
    """As events and reports name them."""
    members = (Member(node="a", incarnation=1, num_workers=2), Member(node="b", incarnation=3, num_workers=1))
    assert workers(Generation(number=1, members=members)) == ["a/0", "a/1", "b/0"]


def test_looks(tmp_path: Path, run: RunOfOne, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first look after ten steps of the generation, the next in some seconds; what a look saw is in the log."""
    monkeypatch.setattr(straggler_probe, "MIN_WORKERS", 1)
    monkeypatch.setattr(straggler_probe, "LOOK_SECONDS", 0.0)
    fit(tmp_path, elastic=True)
    (log,) = (tmp_path / "dtf" / "run").glob("events/*.jsonl")
    seen = [event for event in read_events(ELASTIC_EVENTS, log) if isinstance(event, WorkersPaced)]
    assert [event.step for event in seen] == list(range(11, 19))
    for event in seen:
        (busy,) = event.busy.values()
        assert list(event.busy) == ["n1/0"]
        assert busy > 0
        assert event.seconds > 0
