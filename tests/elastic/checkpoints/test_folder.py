"""Save, prune, own: what a writer does to its folder."""

from __future__ import annotations

import pytest

from dtf_lightning.elastic.checkpoints.folder import CheckpointFolder
from dtf_lightning.elastic.checkpoints.manifest import Manifest
from dtf_lightning.elastic.checkpoints.reader import latest_checkpoint, verify
from dtf_lightning.elastic.checkpoints.retention import AnyOf, BestN, LatestN
from dtf_lightning.elastic.checkpoints.storage.local import LocalStorage
from dtf_lightning.elastic.checkpoints.storage.opening import open_storage
from dtf_lightning.errors import CheckpointError, SettingsError
from support.elastic.checkpoint_disks import POLICY, content, save


@pytest.fixture(params=["local", "file url", "memory"])
def storage(request, tmp_path):
    """The same contract for a local folder, a file:// URL and fsspec's memory file system."""
    match request.param:
        case "local":
            yield LocalStorage(tmp_path / "checkpoints")
        case "file url":
            yield open_storage(f"file://{tmp_path}/checkpoints")
        case "memory":
            memory = open_storage("memory://checkpoints")
            yield memory
            memory._fs.rm("/checkpoints", recursive=True)


def steps(folder: CheckpointFolder) -> list[int]:
    return [record.step for record in folder.records]


def test_best_and_recent_stay(storage):
    """Ten saves with a metric that is best at steps 3 and 5; files on disk are those listed, and whole."""
    folder = CheckpointFolder(storage, "run", POLICY)
    for step in range(1, 11):
        assert save(folder, step, abs(step - 4) + 0.1 * step) is not None
        assert len(folder.records) <= 5
    assert steps(folder) == [3, 4, 8, 9, 10]
    assert sorted(name for name in storage.names() if name.endswith(".ckpt")) == sorted(r.name for r in folder.records)
    for record in folder.records:
        assert verify(storage, record).intact
        with storage.open(record.name) as file:
            assert file.read() == content(record.step)
    latest = latest_checkpoint(storage.url)
    assert latest is not None
    assert latest.endswith("step=10.ckpt")


def test_resuming_adopts_its_own(storage):
    """A second writer of the same run goes on with serials, best list and pruning."""
    first = CheckpointFolder(storage, "run", POLICY)
    for step in (1, 2, 3, 4, 5):
        save(first, step, 10 - step)
    second = CheckpointFolder(storage, "run", POLICY)
    assert second.records == first.records
    save(second, 6, 0.5)
    assert steps(second) == [4, 5, 6]
    assert [record.serial for record in second.records] == [4, 5, 6]


def test_two_runs_in_one_folder(storage):
    """Neither removes nor overwrites what the other wrote, even under the same name."""
    mine = CheckpointFolder(storage, "mine", LatestN(1))
    yours = CheckpointFolder(storage, "yours", LatestN(2))
    for step in (1, 2, 3):
        save(mine, step)
        save(yours, step)
    assert [record.name for record in mine.records] == ["step=3.ckpt"]
    assert steps(yours) == [2, 3]
    for record in (*mine.records, *yours.records):
        assert verify(storage, record).intact
    assert not {record.name for record in mine.records} & {record.name for record in yours.records}


def test_a_file_in_the_way_is_not_touched(storage):
    """Somebody else's file has the name: ours gets a version."""
    storage.write("step=1.ckpt", lambda file: file.write(b"not ours"))
    folder = CheckpointFolder(storage, "run", LatestN(1))
    record = save(folder, 1)
    assert record is not None
    assert record.name == "step=1-v1.ckpt"
    save(folder, 2)
    with storage.open("step=1.ckpt") as file:
        assert file.read() == b"not ours"
    assert not storage.exists("step=1-v1.ckpt")


def test_nothing_is_written_that_would_not_stay(storage):
    """Best only, and the new one is not among them."""
    folder = CheckpointFolder(storage, "run", BestN(1, "loss"))
    save(folder, 1, 1.0)
    before = storage.names()
    assert save(folder, 2, 2.0) is None
    assert save(folder, 3, float("nan")) is None
    assert storage.names() == before


def test_metrics_that_come_after_the_saving(storage):
    """A checkpoint becomes best by a metric that was measured later, and stays."""
    folder = CheckpointFolder(storage, "run", AnyOf((BestN(1, "loss"), LatestN(1))))
    save(folder, 1)
    assert folder.annotate("step=1.ckpt", {"loss": 0.1}) is not None
    for step in (2, 3):
        save(folder, step)
        folder.annotate(f"step={step}.ckpt", {"loss": 1.0})
    assert steps(folder) == [1, 3]
    assert folder.annotate("step=2.ckpt", {"loss": 0.0}) is None


def test_suspects_go_first(storage):
    """What was saved while training diverged makes room, and is not resumed from."""
    folder = CheckpointFolder(storage, "run", POLICY)
    for step, loss in ((25, 2.95), (50, 2.9), (75, 8.0), (100, 8.0)):
        save(folder, step, loss)
    folder.suspect(75)
    assert steps(folder) == [25, 50, 100]
    latest = latest_checkpoint(storage.url)
    assert latest is not None
    assert latest.endswith("step=50.ckpt")


def test_pruned_by_another_process_meanwhile(storage):
    """`dtf checkpoints prune` in a live run: the writer takes over what was left."""
    folder = CheckpointFolder(storage, "run", POLICY)
    for step in range(1, 6):
        save(folder, step, float(step))
    other = CheckpointFolder(storage, "run", POLICY, recover=False)
    assert len(other.prune(LatestN(1), dry_run=True)) == 4
    assert len(folder.records) == 5
    assert [record.step for record in other.prune(LatestN(1))] == [1, 2, 3, 4]
    save(folder, 6, 9.0)
    assert steps(folder) == [5, 6]


def test_failing_content_changes_nothing(storage):
    """The state cannot be pickled: the error comes through, nothing is left behind."""
    folder = CheckpointFolder(storage, "run", POLICY)
    save(folder, 1, 1.0)

    def broken(file):
        file.write(b"half")
        raise TypeError("cannot pickle")

    with pytest.raises(TypeError, match="cannot pickle"):
        folder.save("step=2.ckpt", {".ckpt": broken}, step=2)
    assert steps(folder) == [1]
    assert sorted(storage.names()) == [
        "manifest-run.0.json", "manifest-run.1.json", "step=1.ckpt", "step=1.safetensors"
    ]  # fmt: skip
    save(folder, 2, 1.0)
    assert steps(folder) == [1, 2]


@pytest.mark.parametrize("fails", [False, True])
def test_a_writer_that_comes_back_from_the_dead(storage, fails):
    """Frozen in the middle of a save; another one takes over and saves; the old one then changes nothing."""
    old = CheckpointFolder(storage, "run", POLICY)
    for step in (1, 2, 3):
        save(old, step, float(step))
    taken: list[CheckpointFolder] = []

    def frozen(file):
        new = CheckpointFolder(storage, "run", POLICY)
        for step in (5, 6, 7):
            save(new, step, float(step))
        taken.append(new)
        file.write(b"late")
        if fails:
            raise OSError("storage is gone")

    with pytest.raises(CheckpointError, match="storage is gone" if fails else "another process|step=4.ckpt.tmp"):
        old.save("step=4.ckpt", {".ckpt": frozen}, step=4)
    again = CheckpointFolder(storage, "run", POLICY)
    assert again.records == taken[0].records
    assert steps(again) == [1, 2, 5, 6, 7]
    assert all(verify(storage, record).intact for record in again.records)
    assert not storage.exists("step=4.ckpt")


def test_a_folder_that_cannot_be_made(tmp_path):
    """A file where the folder should be: an error that says what to do."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Nothing was lost"):
        save(CheckpointFolder(LocalStorage(tmp_path / "file"), "run", POLICY), 1)


def test_run_names_become_file_names():
    with pytest.raises(SettingsError, match="letters, digits"):
        Manifest(run="a/b")
