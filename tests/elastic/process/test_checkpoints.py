"""`BestCheckpoints` and `DivergenceStopping` in elastic runs: rank 0 dies in a save, moves, leaves; the world changes."""

from __future__ import annotations

import pytest

from dtf_lightning.elastic.checkpoints.manifest import load, runs
from dtf_lightning.elastic.checkpoints.reader import latest_checkpoint, verify
from dtf_lightning.elastic.checkpoints.storage.local import LocalStorage
from support.elastic.run import PATIENCE, exactly
from support.elastic.training import Training

pytestmark = pytest.mark.process

STEPS = 11
"""Per epoch, with three workers."""

POINTS = [
    ("create", 1),  # of the manifest that announces
    ("rename", 1),
    ("write", 3),  # of the checkpoint
    ("sync", 2),
    ("rename", 2),
    ("sync_folder", 2),
    ("create", 3),  # of the manifest that lists it
    ("rename", 3),
    ("sync_folder", 3),
    ("unlink", 1),  # of the checkpoint that it replaces
]

BY_DEFAULT = {("write", 3), ("rename", 2), ("rename", 3)}


def check_saved(run, *, at_least: int) -> list[int]:
    """Whatever the manifest lists is whole; there is nothing else; it is not more than best + recent."""
    storage = LocalStorage(run.folder / "saved")
    (name,) = runs(storage.names())
    manifest = load(storage, name).manifest
    assert manifest is not None
    for record in manifest.records:
        assert verify(storage, record).intact, record
    assert len(manifest.records) <= 3
    listed = {record.name for record in manifest.records}
    assert {path for path in storage.names() if not path.startswith("manifest-")} == listed
    latest = max(record.step for record in manifest.records)
    assert latest >= at_least
    assert latest_checkpoint(storage.folder) is not None
    return [record.step for record in manifest.records]


@pytest.mark.parametrize(
    "point",
    [pytest.param(p, marks=() if p in BY_DEFAULT else pytest.mark.chaos, id=f"{p[0]}-{p[1]}") for p in POINTS],
)
def test_writer_dies_in_a_save(make_run, point):
    """kill -9 of rank 0 in the save of step 8; rank 0 moves, goes on with the same manifest, and nothing is lost."""
    run = make_run(
        Training(callbacks=("best_checkpoints", "divergence"), checkpoint_every=4, save_dies_at=point), **exactly(3)
    )
    run.start("a", "b", "c")
    run.wait_until_over(failed=1)
    run.check(survivors=2, epochs=2)
    assert (run.folder / "died").exists()
    check_saved(run, at_least=4 * (2 * STEPS // 4))


def test_join_during_a_save(make_run):
    """An asynchronous save hangs while a node joins; the save is finished later and both are all right."""
    training = Training(
        callbacks=("best_checkpoints_async", "divergence"),
        checkpoint_every=4,
        save_waits="go",
        max_epochs=4,
        until_stopped=True,
    )
    run = make_run(training, max_nodes=3)
    run.start("a", "b")
    run.wait_for_file(run.folder / "waiting")
    run.start("c")
    run.wait_for_world(3)
    run.release("go")
    run.stop()
    assert set(run.wait_until_over().values()) == {0}
    run.check(survivors=3)
    check_saved(run, at_least=8)


def test_writer_leaves_during_a_save(make_run):
    """Rank 0 gets SIGTERM while its save hangs: the next rank 0 takes over, the late save changes nothing."""
    import signal

    training = Training(callbacks=("best_checkpoints_async",), checkpoint_every=4, save_waits="go", until_stopped=True)
    run = make_run(training, max_nodes=3)
    run.start("a")
    run.wait_for_file(run.folder / "waiting")
    run.start("b")
    run.wait_for_world(2)
    run.nodes["a"].send(signal.SIGTERM)
    run.wait_for_world(1)
    run.release("go")
    assert run.server.wait(run.nodes["a"].pid, PATIENCE) == 0  # its save is done, or b's end would clean it up
    run.stop()
    codes = run.wait_until_over()
    assert codes["b"] == 0
    run.check(survivors=1)
    check_saved(run, at_least=8)
