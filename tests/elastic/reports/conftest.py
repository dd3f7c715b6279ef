from __future__ import annotations

import json

import pytest

from dtf_lightning.elastic.events import (
    ELASTIC_EVENTS,
    CheckpointPruned,
    CheckpointSaved,
    Evaluated,
    GenerationEntered,
    StepsDone,
    TimeSpent,
    TrainingDescribed,
    WorkerEnded,
    WorkerRescaled,
    WorkerStarted,
)
from dtf_lightning.elastic.reports.store import ResultsStore
from dtf_lightning.events.log import EventLog, events_path


def steps(at=12.0, step=10, **changed):
    values = {
        "generation": 1, "world_size": 2, "rank": 0, "epoch": 0, "steps": 10, "seconds": 2.0, "samples": 80,
        "data_wait": 0.2, "loss": 1.0, "lr": 0.1, "rss": 1000,
    }  # fmt: skip
    return StepsDone(at=at, source="a/0", step=step, **{**values, **changed})


def entered(at, generation, step, source="a/0", **changed):
    values = {
        "rescale": "start" if generation == 1 else "failure", "reason": "b#1 failed: 2 -> 1 nodes",
        "members": ("a#1", "b#1") if generation == 1 else ("a#1",), "world_size": 3 - generation, "rank": 0,
        "incarnation": 1, "epoch": 0, "formed_at": at,
    }  # fmt: skip
    return GenerationEntered(at=at, source=source, generation=generation, step=step, **{**values, **changed})


def started(source, at):
    node, rank = source.split("/")
    return WorkerStarted(
        at=at, source=source, run_id="r", node=node, local_rank=int(rank), incarnation=1, pid=1, host="h",
        started_at=at - 2, joiner=False,
    )  # fmt: skip


@pytest.fixture
def run_dir(tmp_path):
    """Two workers; b is killed, a goes on alone and finishes."""
    folder = tmp_path / "r"
    a, b = (EventLog(ELASTIC_EVENTS, events_path(folder, f"{name}.0.1")) for name in "ab")
    for log, source in ((a, "a/0"), (b, "b/0")):
        log.write(started(source, 10.0))
        log.write(entered(10.5, 1, 0, source))
    b.write(TimeSpent(at=14.0, source="b/0", generation=1, incarnation=1, wall=6.0,
                      seconds={"startup": 2.5, "productive": 3.5}))  # fmt: skip
    a.write(TrainingDescribed(at=10.6, source="a/0", description={"model": "Net", "dataset_size": 8}))
    a.write(steps())
    a.write(CheckpointSaved(at=12.1, source="a/0", generation=1, step=10, epoch=0, path="c1", seconds=0.1, size=5))
    a.write(entered(14.0, 2, 12, failed=("b#1",)))
    a.write(WorkerRescaled(
        at=14.1, source="a/0", generation=2, rescale="failure", reason="b#1 failed: 2 -> 1 nodes", world_size=1, rank=0,
        step=13, pause=0.1, phases={"unwind": 0.02, "wait": 0.03, "first_step": 0.05}, redrawn=True, incarnation=1,
    ))  # fmt: skip
    a.write(steps(at=16.0, step=20, generation=2, world_size=1, samples=40, loss=0.5))
    for value in (0.7, 0.8):  # the second after the first was undone
        a.write(Evaluated(at=16.0 + value, source="a/0", generation=2, epoch=0, step=20, seconds=0.3,
                          metrics={"val/accuracy": value}))  # fmt: skip
    a.write(CheckpointSaved(at=17.0, source="a/0", generation=2, step=20, epoch=0, path="c2", seconds=0.1, size=6))
    a.write(CheckpointPruned(at=17.1, source="a/0", step=20, path="c1"))
    a.write(TimeSpent(at=18.0, source="a/0", generation=2, incarnation=1, wall=10.0, seconds={
        "startup": 2.5, "productive": 6.0, "validation": 0.6, "waiting": 0.03, "rescale_unwind": 0.02, "lost": 0.85,
    }))  # fmt: skip
    a.write(WorkerEnded(at=18.0, source="a/0", incarnation=1, reason="finished", step=20))
    a.close()
    b.close()
    ledger = folder / "ledger" / "a.0.1.jsonl"
    ledger.parent.mkdir()
    lines = [
        {"kind": "begin", "generation": 1, "rank": 0, "world_size": 1, "step": 0, "epoch": 0},
        {"kind": "draw", "generation": 1, "rank": 0, "epoch": 0, "step": 0, "samples": [*range(8), 0], "padding": 1},
        {"kind": "end", "generation": 1, "rank": 0, "step": 1},
    ]
    ledger.write_text("".join(json.dumps({"v": 1, **line}) + "\n" for line in lines))
    return folder


@pytest.fixture
def resumed_run_dir(run_dir):
    """The run goes on under its id in its folder: one worker, whose files are those of a worker before; its generation
    is the first of its instance, and begins at a step that the run had passed."""
    log = EventLog(ELASTIC_EVENTS, events_path(run_dir, "b.0.1"))
    log.write(steps(at=17.5, step=25, generation=2, steps=5, loss=0.4))
    log.close()
    log = EventLog(ELASTIC_EVENTS, events_path(run_dir, "a.0.1"))
    log.write(started("a/0", 100.0))
    log.write(entered(101.0, 1, 15, instance="second", members=("a#1",), world_size=1))
    log.write(steps(at=104.0, step=20, steps=5, world_size=1, samples=20, loss=0.6))
    log.write(steps(at=106.0, step=30, world_size=1, samples=40, loss=0.3))
    log.write(Evaluated(at=104.5, source="a/0", generation=1, epoch=0, step=20, seconds=0.3,
                        metrics={"val/accuracy": 0.9}))  # fmt: skip
    log.write(CheckpointSaved(at=106.5, source="a/0", generation=1, step=30, epoch=0, path="c3", seconds=0.1, size=7))
    log.write(TimeSpent(at=107.0, source="a/0", generation=1, incarnation=1, wall=9.0, seconds={
        "startup": 3.0, "productive": 6.0,
    }))  # fmt: skip
    log.write(WorkerEnded(at=107.0, source="a/0", incarnation=1, reason="finished", step=30))
    log.close()
    ledger = run_dir / "ledger" / "a.0.1.jsonl"
    lines = [
        {"kind": "begin", "instance": "second", "generation": 1, "rank": 0, "world_size": 1, "step": 1, "epoch": 1},
        {
            "kind": "draw",
            "instance": "second",
            "generation": 1,
            "rank": 0,
            "epoch": 1,
            "step": 1,
            "samples": [*range(8)],
            "padding": 0,
        },
        {"kind": "end", "instance": "second", "generation": 1, "rank": 0, "step": 2},
    ]
    with ledger.open("a") as file:
        file.writelines(json.dumps({"v": 2, **line}) + "\n" for line in lines)
    return run_dir


@pytest.fixture
def store():
    with ResultsStore() as store:
        yield store
