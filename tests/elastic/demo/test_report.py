"""The demo's account from made-up numbers: what the table says, and what it does not let pass."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from torch.utils.tensorboard import SummaryWriter

from dtf_lightning.elastic.demo import NUM_TRAINING_SAMPLES, report
from dtf_lightning.elastic.demo.scenario import Act
from dtf_lightning.elastic.events import WorkerRescaled
from dtf_lightning.elastic.observe.ledger import Audit, EpochAudit
from dtf_lightning.elastic.observe.rescale_audit import GenerationCost

NAMES = {"host-11-aa": "a", "host-12-bb": "b"}


def cost(generation, world_size, **lost):
    counts = dict.fromkeys(("steps_lost", "steps_redone", "samples_lost", "samples_repeated", "padding"), 0)
    return GenerationCost(generation=generation, world_size=world_size, step=0, steps=50, **{**counts, **lost})


def rescaled(generation, pause, at=100.0):
    return WorkerRescaled(
        generation=generation,
        at=at,
        rescale="failure",
        reason="host-12-bb#1 failed: 2 -> 1 nodes, 1 workers",
        world_size=1,
        rank=0,
        step=50,
        pause=pause,
        phases={},
        redrawn=False,
    )


def audit(consumed=None, steps_lost=0):
    counts = Counter(range(NUM_TRAINING_SAMPLES)) if consumed is None else consumed
    return Audit(
        epochs={0: EpochAudit(epoch=0, consumed=counts)},
        committed_steps=100,
        void_draws=0,
        resume_steps={1: 0},
        steps_lost=steps_lost,
    )


def log(accuracy=0.99, steps=(4, 9, 14), num_versions=1):
    return report.TrainingLog(folder=Path("log"), num_versions=num_versions, steps=steps, accuracy=accuracy)


@pytest.fixture
def rows():
    """Two generations; b is killed between them."""
    acts = [Act(what="a and b start", generation=1, at=None), Act(what="kill -9", generation=2, at=99.7)]
    events = [rescaled(2, 0.1), rescaled(2, 0.3, at=100.1)]
    return report.rows([cost(1, 2), cost(2, 1, steps_redone=1, padding=3)], events, acts, NAMES)


def test_a_row_has_the_leaders_reason_in_the_demos_names(rows):
    assert [row.reason for row in rows] == ["a and b start", "b failed (kill -9)"]


def test_table(rows):
    """Median and worst pause of the survivors; none for the first generation."""
    lines = report.table(rows)
    assert lines[3].split() == ["1", "a", "and", "b", "start", "2", "-", "0", "0", "0"]
    assert lines[4].split() == ["2", "b", "failed", "(kill", "-9)", "1", "200", "(300)", "0", "0", "0"]
    assert len({len(line) for line in lines[2:]}) == 1


def test_notes_count_what_the_table_leaves_out(rows):
    text = "\n".join(report.notes(rows))
    assert "400 ms (generation 2)" in text  # from the signal to the last survivor's step
    assert "1 steps in flight" in text
    assert "3 samples" in text


def test_nothing_wrong(rows):
    assert report.problems(rows, audit(), log(), log(accuracy=0.995)) == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"audit": audit(steps_lost=2)}, "2 steps were lost"),
        ({"audit": audit(Counter(range(NUM_TRAINING_SAMPLES - 3)))}, "3 samples were lost"),
        ({"audit": audit(Counter([*range(NUM_TRAINING_SAMPLES), 7]))}, "1 samples were repeated"),
        ({"log": log(accuracy=0.9)}, "the accuracy, 0.900, is more than 0.02 below 0.990"),
        ({"log": log(num_versions=2)}, "1 TensorBoard versions"),
        ({"log": log(steps=(4, 9, 9))}, "1 points of the TensorBoard log go back"),
        ({"log": log(steps=(4, 9, 54))}, "1 gaps in the TensorBoard log"),
        ({"log": log(steps=(54, 59))}, "1 gaps in the TensorBoard log"),
    ],
)
def test_each_loss_is_said(rows, given, said):
    found = report.problems(rows, given.get("audit", audit()), given.get("log", log()), log())
    assert len(found) == 1
    assert said in found[0]


def test_losses_that_only_one_generation_shows(rows):
    """The rows count too: a step that was committed, undone and drawn again is in no total."""
    rows = report.rows([cost(1, 2), cost(2, 1, steps_lost=4)], [], [], NAMES)
    found = report.problems(rows, audit(), log(), log())
    assert found == ["4 steps were lost", "1 rescales are without a survivor's word on the pause"]


@pytest.mark.parametrize("voided", [True, False])
def test_steps_that_were_undone(tmp_path, voided):
    """What the next rank 0 voids is no point that goes back; what nobody voids is one."""
    folder = tmp_path / "version_0"
    for number, (steps, void) in enumerate([((4, 9, 14), None), ((14, 19), 14)]):
        with SummaryWriter(str(folder), filename_suffix=f".{number}") as writer:
            if void is not None and voided:
                writer.file_writer.add_event(Event(session_log=SessionLog(status=SessionLog.START)), void)
            for step in steps:
                writer.add_scalar("train/loss", 1.0, step)
            writer.add_scalar("val/accuracy", 0.98, 20)
        # Of one second, the names sort by a process's number of writers, as text: the tenth before the ninth.
        [written] = folder.glob(f"*.{number}")
        written.rename(folder / f"events.out.tfevents.{number}.log")
    assert report.read_log(tmp_path).steps == ((4, 9, 14, 19) if voided else (4, 9, 14, 14, 19))


def test_a_folder_without_a_log(tmp_path):
    with pytest.raises(ValueError, match="no TensorBoard log in"):
        report.read_log(tmp_path)
