"""The writer dies, the power goes, the disk is full: at every single operation of a save that also prunes."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from pathlib import Path

import pytest

from dtf_lightning.elastic.checkpoints import manifest as manifests
from dtf_lightning.elastic.checkpoints.folder import CheckpointFolder
from dtf_lightning.elastic.checkpoints.manifest import Manifest
from dtf_lightning.elastic.checkpoints.reader import best_checkpoint, latest_checkpoint, verify
from dtf_lightning.elastic.checkpoints.storage.local import LocalStorage
from dtf_lightning.errors import CheckpointError
from support.elastic.checkpoint_disks import (
    POLICY,
    Counting,
    Full,
    PowerCut,
    TearingWrites,
    before,
    check_goes_on,
    check_nothing_lost,
    save,
    save_and_prune,
)

KILLED = 9


def operations_of_a_save(folder: Path) -> list[str]:
    names: list[str] = []
    before(folder)
    save_and_prune(folder, Counting(lambda _, name: names.append(name)))
    return names


def in_a_child(work) -> int:
    """The exit code; 1 for an exception."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fresh(tmp_path: Path, name: object) -> Path:
    target = tmp_path / str(name)
    if not (tmp_path / "before").exists():
        before(tmp_path / "before")
    shutil.copytree(tmp_path / "before", target)
    return target


def test_killed_at_every_operation(tmp_path):
    """os._exit in a forked child before each operation: best and last are there, the next writer cleans up."""
    names = operations_of_a_save(tmp_path / "count")
    assert {"create", "write", "sync", "close", "rename", "sync_folder", "unlink"} <= set(names)
    outcomes = set()
    for number in range(1, len(names) + 1):
        folder = fresh(tmp_path, number)

        def die(reached: int, _: str, number: int = number) -> None:
            if reached == number:
                os._exit(KILLED)

        assert in_a_child(lambda folder=folder, die=die: save_and_prune(folder, Counting(die))) == KILLED
        outcomes.add(60 in check_nothing_lost(folder))
        check_goes_on(folder)
    assert outcomes == {False, True}  # the crash points lie on both sides of the moment that counts


def test_killed_in_the_middle_of_every_write(tmp_path):
    """Half of the bytes are written when the process dies."""
    names = operations_of_a_save(tmp_path / "count")
    for number in range(1, names.count("write") + 1):
        folder = fresh(tmp_path, number)
        tearing = TearingWrites(number, lambda: os._exit(KILLED))
        assert in_a_child(lambda folder=folder, tearing=tearing: save_and_prune(folder, tearing)) == KILLED
        check_nothing_lost(folder)
        check_goes_on(folder)


def test_power_cut_at_every_operation(tmp_path):
    """Only what was synced is sure to be there; of the rest any subset of the directory's changes."""
    images = cuts(PowerCut(fresh(tmp_path, "live")))
    assert len(images) > 30
    for number, image in enumerate(images):
        cut = materialise(image, tmp_path / f"cut{number}")
        check_nothing_lost(cut)
        check_goes_on(cut)


class _ForgetsToSync(PowerCut):
    def sync(self, file: int) -> None:
        pass


class _ForgetsTheFolder(PowerCut):
    def sync_folder(self, path: Path) -> None:
        pass


@pytest.mark.parametrize("careless", [_ForgetsToSync, _ForgetsTheFolder])
def test_the_power_cuts_are_hard_enough(tmp_path, careless):
    """Without the fsync of the file, or of the folder, the same checks fail."""
    images = cuts(careless(fresh(tmp_path, "live")))
    cut = (materialise(image, tmp_path / f"cut{number}") for number, image in enumerate(images))
    with pytest.raises(AssertionError):
        list(map(check_nothing_lost, cut))


def cuts(disk: PowerCut) -> list[dict[str, bytes]]:
    """All that a power cut during a save could leave."""
    images: dict[tuple, dict[str, bytes]] = {}

    def remember() -> None:
        for image in disk.images():
            images[tuple(sorted(image.items()))] = image

    disk.watch = remember
    save_and_prune(disk.folder, disk)
    return list(images.values())


def materialise(image: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir()
    for name, data in image.items():
        (folder / name).write_bytes(data)
    return folder


def test_killed_while_recovering(tmp_path):
    """The next writer dies too, at each of its operations; the one after it is all right."""
    crashed = fresh(tmp_path, "crashed")
    names = operations_of_a_save(tmp_path / "count")

    def die(reached: int, _: str) -> None:
        if reached == names.index("rename", names.index("rename") + 1) + 2:  # the checkpoint is there, not yet listed
            os._exit(KILLED)

    assert in_a_child(lambda: save_and_prune(crashed, Counting(die))) == KILLED
    seen: list[str] = []
    shutil.copytree(crashed, tmp_path / "counted")
    CheckpointFolder(LocalStorage(tmp_path / "counted", Counting(lambda _, name: seen.append(name))), "run", POLICY)
    assert seen
    for number in range(1, len(seen) + 1):
        folder = tmp_path / f"again{number}"
        shutil.copytree(crashed, folder)

        def die_again(reached: int, _: str, number: int = number) -> None:
            if reached == number:
                os._exit(KILLED)

        storage = LocalStorage(folder, Counting(die_again))
        assert in_a_child(lambda storage=storage: CheckpointFolder(storage, "run", POLICY)) == KILLED
        check_nothing_lost(folder)
        check_goes_on(folder)


def test_full_disk_at_every_operation(tmp_path):
    """ENOSPC is a CheckpointError that names what is left; when there is room again the same writer goes on."""
    number = 0
    while True:
        folder = fresh(tmp_path, number)
        storage = LocalStorage(folder, Full(number))
        try:
            writer = CheckpointFolder(storage, "run", POLICY)
            save(writer, 60, 1.05)
        except CheckpointError as error:
            assert "No space left" in str(error)  # noqa: PT017  the loop ends when there is none
            check_nothing_lost(folder)
            storage._do = Counting(lambda *_: None)
            save(writer, 60, 1.05)
            assert {10, 60} <= {record.step for record in writer.records}
            check_goes_on(folder)
        else:
            break
        number += 1
    assert number > 10


def test_file_size_limit(tmp_path):
    """A limit of the real system, not an injected one."""
    folder = fresh(tmp_path, "limited")

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            save_and_prune(folder, Counting(lambda *_: None))
        except CheckpointError:
            os._exit(7)

    assert in_a_child(limited) == 7
    check_nothing_lost(folder)
    check_goes_on(folder)


def test_every_flipped_byte_is_detected(tmp_path):
    """In checkpoints and in both slots of the manifest; the other checkpoints, the other slot, take over."""
    folder = fresh(tmp_path, "flipped")
    storage = LocalStorage(folder)
    manifest = manifests.load(storage, "run").manifest
    assert manifest is not None
    last = manifest.records[-1]
    for part in last.parts:
        path = folder / part.path
        data = path.read_bytes()
        for index in range(len(data)):
            path.write_bytes(data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])
            assert not verify(storage, last).intact
        for size in range(len(data)):
            path.write_bytes(data[:size])
            assert not verify(storage, last).intact
        path.write_bytes(data)
    assert verify(storage, last).intact
    data = manifest.encode()
    for index in range(len(data)):
        with pytest.raises(ValueError, match="checksum"):
            Manifest.decode(data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :])
        with pytest.raises(ValueError, match="checksum"):
            Manifest.decode(data[:index])


def test_falls_back_to_the_newest_intact(tmp_path, caplog):
    """The newest, then the best, is damaged or gone: latest and best name the next; with a damaged slot too."""
    folder = fresh(tmp_path, "damaged")
    assert latest_checkpoint(folder) == str(folder / "step=50.ckpt")
    assert best_checkpoint(folder, "loss") == str(folder / "step=10.ckpt")
    assert best_checkpoint(folder, "unknown") == str(folder / "step=50.ckpt")
    (folder / "step=50.ckpt").write_bytes(b"rotten")
    (folder / "step=10.safetensors").unlink()
    assert latest_checkpoint(folder) == str(folder / "step=40.ckpt")
    assert best_checkpoint(folder, "loss") == str(folder / "step=20.ckpt")
    assert "step=50.ckpt is damaged" in caplog.text
    assert "step=10.ckpt is missing" in caplog.text
    newest = max((manifests.load(LocalStorage(folder), "run").manifest.edition) % 2, 0)
    (folder / manifests.file_name("run", newest)).write_bytes(b"{}")
    assert latest_checkpoint(folder) == str(folder / "step=40.ckpt")
    for path in folder.glob("*.ckpt"):
        path.unlink()
    assert latest_checkpoint(folder) is None
