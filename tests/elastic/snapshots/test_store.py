"""A node's folder of snapshots: bounded, whole or absent, and nobody else's."""

from __future__ import annotations

import logging
import os
from dataclasses import replace

import pytest

from dtf_lightning.elastic.snapshots import node as node_module
from dtf_lightning.elastic.snapshots.format import read_snapshot
from dtf_lightning.elastic.snapshots.node import NodeSnapshots, RunRecord, last_record, run_key
from dtf_lightning.elastic.snapshots.settings import SnapshotSettings
from dtf_lightning.elastic.snapshots.store import NoRoom, SnapshotFolder
from dtf_lightning.errors import SettingsError
from support.elastic.snapshot_files import SmallDisk, header, state


@pytest.fixture
def make(tmp_path):
    """Make folders of writers; closed afterwards."""
    made = []

    def make(writer="a", **options):
        made.append(SnapshotFolder(tmp_path / "root", writer, **options))
        return made[-1]

    yield make
    for folder in made:
        folder.close()


def steps(folder) -> list[int]:
    return [one.header.position.global_step for one in folder.stored()]


def one_size(folder) -> int:
    path = folder.write(state(0), header(0))
    size = path.stat().st_size
    path.unlink()
    return size


def test_keeps_the_last_two(make):
    """Newest first; nothing unfinished is left."""
    folder = make()
    for step in (1, 2, 3, 4):
        folder.write(state(step), header(step))
    assert steps(folder) == [4, 3]
    assert read_snapshot(folder.stored()[0].path)[1]["step"] == 4
    assert {path.suffix for path in folder.path.iterdir()} == {".snapshot", ""}


def test_a_sibling_was_quicker(make):
    """Two workers of a node stop at one position, or one is a step behind: one file."""
    one, other = make(), make()
    assert one.write(state(5), header(5)) is not None
    assert other.write(state(5), header(5)) is None
    assert other.write(state(4), header(4)) is None
    assert other.write(state(4), header(4, instance="another run")) is not None
    assert len(one.stored()) == 2


def test_never_more_than_its_bound(make):
    """Room for three: two are kept while the third is written. For two: one is. For less: none is given up."""
    size = one_size(make("probe"))
    three, two, less = make("3", limit=3 * size), make("2", limit=2 * size), make("1", limit=2 * size - 1)
    for folder in (three, two):
        for step in (1, 2, 3):
            folder.write(state(step), header(step))
    less.write(state(1), header(1))
    with pytest.raises(NoRoom):
        less.write(state(2), header(2))
    found = {
        writer: [one.serial for one in make(writer).stored() if one.path.parent.name == writer] for writer in "123"
    }
    assert {writer: len(serials) for writer, serials in found.items()} == {"1": 1, "2": 2, "3": 2}


def test_full_file_system_costs_the_older_one_at_most(make, tmp_path):
    """ENOSPC: the older of the two gives way, then the write is tried again; the newest is never given up."""
    size = one_size(make("probe"))
    folder = make(operations=SmallDisk(tmp_path / "root", 2 * size + size // 2))
    for step in (1, 2, 3):
        folder.write(state(step), header(step))
    assert steps(folder) == [3, 2]
    folder = make("b", operations=SmallDisk(tmp_path / "root", 0))
    with pytest.raises(OSError, match="No space"):
        folder.write(state(4), header(4))
    assert steps(make()) == [3, 2]
    assert not list((tmp_path / "root").rglob("*.tmp"))


def test_damaged_ones_are_passed_over_and_said(make, caplog):
    """A truncated file is none of the candidates; the next write puts a whole one in its place."""
    folder = make()
    folder.write(state(1), header(1))
    newest = folder.write(state(2), header(2))
    newest.write_bytes(newest.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING, logger="dtf_lightning"):
        assert steps(folder) == [1]
    assert f"{newest} has" in caplog.text
    folder.write(state(3), header(3))
    assert steps(folder) == [3, 1]


def test_others_are_cleared_away_when_they_are_gone(make, tmp_path):
    """Another instance's snapshots and unfinished files, and the folder of a writer that is dead; a living one stays."""
    dead, living, mine = make("dead"), make("living"), make("mine")
    for folder in (dead, living, mine):
        folder.write(state(1), header(1, instance="old"))
        folder.write(state(2), header(2, instance="new"))
    (dead.path / "3.snapshot.tmp").touch()
    dead.close()
    mine.remove_foreign("new")
    assert [len([one for one in mine.stored() if one.path.parent == f.path]) for f in (dead, living, mine)] == [1, 2, 1]
    assert not list(tmp_path.rglob("*.tmp"))
    mine.remove_dead_writers()
    assert {path.name for path in (tmp_path / "root").iterdir()} == {"living", "mine"}


def test_only_ours(make, tmp_path):
    """What is read is unpickled: a folder that others can enter, or a link, is not used."""
    (tmp_path / "root").mkdir(mode=0o777)
    (tmp_path / "root").chmod(0o777)
    with pytest.raises(PermissionError, match="only this user"):
        make()
    (tmp_path / "root").rmdir()
    (tmp_path / "root").symlink_to(tmp_path)
    with pytest.raises(PermissionError, match="only this user"):
        make()


# --- memory, then disk -----------------------------------------------------------------------------------------------


@pytest.fixture
def make_node(tmp_path):
    """A node with memory and disk in the test's folder; closed afterwards."""
    made = []

    def make(*, operations=None, memory=None, key="key"):
        (tmp_path / "memory").mkdir(exist_ok=True)
        settings = SnapshotSettings(folder=tmp_path / "memory", memory=memory)
        made.append(NodeSnapshots(settings, key=key, run_dir=tmp_path / "run", agent="agent", operations=operations))
        return made[-1]

    yield make
    for node in made:
        node.close()


def lying_in(node) -> list[tuple[int, str]]:
    return [(s.header.position.global_step, s.path.parts[-4 if "run" in s.path.parts else -3]) for s in node.stored()]


@pytest.mark.parametrize("how", ["bound", "full", "no memory wanted", "folder missing"])
def test_falls_back_to_the_disk_and_says_so_once(make_node, tmp_path, caplog, how):
    """Shared memory full, or larger than the bound: the run's folder takes it."""
    with caplog.at_level(logging.WARNING, logger="dtf_lightning"):
        match how:
            case "bound":
                node = make_node(memory=10)
            case "full":
                node = make_node(operations=SmallDisk(tmp_path / "memory", 100))
            case "no memory wanted":
                node = make_node(memory=0)
            case "folder missing":
                settings = SnapshotSettings(folder=tmp_path / "file" / "in")
                (tmp_path / "file").touch()
                node = NodeSnapshots(settings, key="key", run_dir=tmp_path / "run", agent="agent")
        for step in (1, 2, 3):
            assert node.write(state(step), header(step)) is not None
    assert [step for step, _ in lying_in(node)] == [3, 2]
    assert not list((tmp_path / "memory").rglob("*.snapshot"))
    assert len(list((tmp_path / "run/snapshots").rglob("*.snapshot"))) == 2
    said = [record for record in caplog.records if "go to the disk" in record.message]
    assert len(said) == (how != "no memory wanted")
    node.close()


def test_the_disk_is_full_too(make_node, tmp_path, caplog):
    """Nothing can be written anywhere: said once, training goes on."""
    node = make_node(operations=SmallDisk(tmp_path, 0))
    with caplog.at_level(logging.WARNING, logger="dtf_lightning"):
        assert [node.write(state(step), header(step)) for step in (1, 2)] == [None, None]
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]


def test_the_run_is_over(make_node, tmp_path):
    """The last state is kept until the node's last worker has left; then only that the run is over is, on the disk."""
    node, sibling = make_node(), make_node()
    for step in (1, 2):
        node.write(state(step), header(step))
    record = RunRecord(instance="i", generation=2, written_at=3.0, checkpoint_folders=("a",), agents=("agent",))
    node.remember(record)
    assert list(sibling.records()) == [record, record]
    node.finish(replace(record, written_at=4.0, finished=True, settings={"script": "a"}))
    node.leave()
    assert [step for step, _ in lying_in(sibling)] == [2]
    sibling.leave()
    sibling.leave()
    assert not list((tmp_path / "memory").iterdir())
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["run.json"]
    left = make_node()
    assert last_record(left.records()) is None
    assert last_record(left.records(), ["agent"]) == replace(
        record, written_at=4.0, finished=True, settings={"script": "a"}
    )


def test_old_ones_of_other_runs_go(make_node, tmp_path):
    """Untouched for a day: removed when another run begins here; yesterday's noon is not old."""
    for key, age in (("old", 2 * node_module.OLD), ("young", node_module.OLD / 2)):
        other = make_node(key=key)
        path = other.write(state(1), header(1))
        other.close()
        for entry in [path.parent.parent, *path.parent.parent.rglob("*")]:
            when = os.stat(entry).st_mtime - age
            os.utime(entry, (when, when))
    make_node()
    assert {path.name.rpartition("-")[2] for path in (tmp_path / "memory").iterdir()} == {"young", "key"}


def test_a_broken_record_is_passed_over(make_node, caplog):
    node = make_node()
    node.remember(RunRecord(instance="i", generation=1, written_at=1.0))
    for path in node._memory_root.glob("*.json"):
        path.write_text("{")
    assert [record.instance for record in node.records()] == ["i"]
    assert "cannot be read" in caplog.text


def test_which_run_goes_on():
    """The newest life of an instance that nobody knows to be over."""
    old, new = (RunRecord(instance=name, generation=2, written_at=at) for name, at in (("old", 1.0), ("new", 2.0)))
    over = RunRecord(instance="new", generation=2, written_at=3.0, finished=True)
    assert last_record([]) is None
    assert last_record([new, old]) == new
    assert last_record([new, old, over]) == old


def test_a_finished_run_that_goes_on():
    """For an agent under which it finished, whatever else is there; the last of its records counts. For others it is over."""
    over = RunRecord(instance="over", generation=2, written_at=3.0, finished=True, agents=("a", "b"))
    again = replace(over, generation=3, written_at=4.0)
    other = RunRecord(instance="other", generation=9, written_at=9.0, agents=("c",))
    assert last_record([over, other, again], ["b", "x"]) == again
    assert last_record([over, other, again], ["c"]) == other
    assert last_record([over, again], ["c"]) is None


def test_runs_of_one_id_have_folders_of_their_own():
    """Another script: another key. A run without an id is known by its agent."""
    settings = {"script": "a", "seed": "1"}
    assert run_key("r", settings, "x") == run_key("r", dict(reversed(settings.items())), "y")
    assert len({run_key("r", settings, "x"), run_key("s", settings, "x"), run_key("r", {"script": "b"}, "x")}) == 3
    assert run_key("none", settings, "x") != run_key("none", settings, "y")


@pytest.mark.parametrize("wrong", [{"every_n_steps": 0}, {"memory": -1}])
def test_wrong_settings(wrong):
    with pytest.raises(SettingsError, match="expected"):
        SnapshotSettings(**wrong)
