"""How long a worker is busy with a step of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dtf_lightning.elastic.events import ELASTIC_EVENTS, WorkersPaced
from dtf_lightning.elastic.lightning.reporting import straggler_probe
from dtf_lightning.elastic.lightning.reporting.recorder import RunRecorder
from dtf_lightning.elastic.lightning.reporting.straggler_probe import Pace
from dtf_lightning.elastic.link.messages import Welcome
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
    welcome = Welcome(
        run_id="r", node="a", joiner=False, rank=0, world_size=1, store_host="h", store_port=1, incarnation=1,
        num_local_workers=1, heartbeat_interval=1.0, rescale_timeout=1.0,
    )  # fmt: skip
    mine = Pace(RunRecorder(welcome, 0), clock)
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
