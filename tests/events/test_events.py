"""The event log: what is written comes back, and what was torn does not."""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import dataclass

import pytest

from dtf_lightning.elastic.events import ELASTIC_EVENTS, GenerationFormed, WorkerLost, WorkerRescaled, WorkerStarted
from dtf_lightning.events.log import EventLog, read_events
from dtf_lightning.events.registry import Event, EventLogError, EventRegistry, NewerEvents, UnknownEvent

FORMED = GenerationFormed(
    at=1.5, source="a", generation=2, rescale="join", reason="b joined", members=("a#1", "b#1"), world_size=2
)
LOST = WorkerLost(at=2.5, source="a", node="a", local_rank=0, reason="killed")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events" / "a.jsonl"


def test_round_trip(path):
    """Events of two writers come back in order, with their types."""
    first, second = EventLog(ELASTIC_EVENTS, path), EventLog(ELASTIC_EVENTS, path)
    first.write(FORMED)
    second.write(LOST)
    first.close()
    second.close()
    first.write(LOST)  # closed: swallowed
    assert list(read_events(ELASTIC_EVENTS, path)) == [FORMED, LOST]
    assert ELASTIC_EVENTS.from_json(FORMED.to_json()) == FORMED


def test_torn_last_line(path):
    """A process killed in mid-write costs its last line and nothing else."""
    log = EventLog(ELASTIC_EVENTS, path)
    log.write(FORMED)
    log.close()
    with path.open("ab") as file:
        file.write(b'{"v":1,"kind":"worker_l')
    assert list(read_events(ELASTIC_EVENTS, path)) == [FORMED]


def test_broken_line(path):
    """A broken line in the middle is an error that names the line."""
    path.parent.mkdir()
    path.write_text(json.dumps(LOST.to_json()) + "\nnonsense\n{}\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:2: expected one JSON object a line, got b'nonsense'"):
        list(read_events(ELASTIC_EVENTS, path))


def test_unknown_kind(path):
    """An event of a kind that this version does not know is kept as it was read."""
    path.parent.mkdir()
    path.write_text('{"v":2,"kind":"teleported","at":3.0,"source":"a"}\n')
    (event,) = read_events(ELASTIC_EVENTS, path)
    assert isinstance(event, UnknownEvent)
    assert (event.at, event.data["kind"]) == (3.0, "teleported")


def test_older_version_is_migrated(path):
    """Version 1 did not say which incarnation rescaled."""
    path.parent.mkdir()
    line = {
        "v": 1, "kind": "worker_rescaled", "at": 1.0, "source": "a/0", "generation": 2, "rescale": "join",
        "reason": "b joined", "world_size": 2, "rank": 0, "step": 9, "pause": 0.1, "phases": {"wait": 0.1},
        "redrawn": False,
    }  # fmt: skip
    path.write_text(json.dumps(line) + "\n")
    (event,) = read_events(ELASTIC_EVENTS, path)
    assert isinstance(event, WorkerRescaled)
    assert event.incarnation == 0


def test_newer_version_is_refused(path):
    """With what to do about it, and where."""
    path.parent.mkdir()
    path.write_text('{"v":99,"kind":"teleported","at":3.0,"source":"a"}\n')
    with pytest.raises(NewerEvents, match=r"a\.jsonl:1: event version 99, this program reads up to 2; .* --upgrade"):
        list(read_events(ELASTIC_EVENTS, path))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"local_rank": "zero"}, "worker_lost: local_rank is 'zero', which it cannot be"),
        ({"node": None}, "worker_lost: node is None"),
        ({"v": "2"}, "its version is '2'"),
    ],
)
def test_fields_are_checked(changed, said):
    with pytest.raises(EventLogError, match=re.escape(said)):
        ELASTIC_EVENTS.parse(json.dumps({**LOST.to_json(), **changed}))


def test_missing_field():
    data = LOST.to_json()
    del data["reason"]
    with pytest.raises(EventLogError, match="worker_lost: reason is missing"):
        ELASTIC_EVENTS.parse(json.dumps(data))


def test_events_wait_for_their_file(path):
    """An agent learns from its workers where the run's folder is."""
    log = EventLog(ELASTIC_EVENTS)
    log.write(FORMED)
    log.open(path)
    log.write(LOST)
    log.close()
    assert list(read_events(ELASTIC_EVENTS, path)) == [FORMED, LOST]


def test_folder_that_cannot_be_written_to(tmp_path, caplog):
    """One warning, and no exception ever."""
    (tmp_path / "file").touch()
    log = EventLog(ELASTIC_EVENTS, tmp_path / "file" / "events" / "a.jsonl")
    log.write(LOST)
    log.write(LOST)
    log.close()
    assert [record.message[:70] for record in caplog.records] == [
        f"the event log cannot be written ({tmp_path}/file/events/a.jsonl: Not a"[:70]
    ]


def test_disk_full(path, caplog, monkeypatch):
    """A write that the disk cuts short costs its line and one warning; what comes after it is whole again."""
    log = EventLog(ELASTIC_EVENTS, path)
    log.write(FORMED)
    write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, line: write(fd, line[:9]))
        log.write(LOST)
        full.setattr(os, "write", _no_space)
        log.write(LOST)
    log.write(LOST)
    log.close()
    assert len(caplog.records) == 1
    lines = path.read_bytes().splitlines()
    assert [ELASTIC_EVENTS.parse(line) for line in (lines[0], lines[2])] == [FORMED, LOST]
    assert len(lines) == 3


def _no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


FACTORY_EVENTS = EventRegistry(version=1)


@FACTORY_EVENTS.register("worker_started", important=True)
@dataclass(frozen=True, kw_only=True)
class MachineStarted(Event):
    machine: str

    def describe(self) -> str:
        return f"{self.machine} takes tasks"


def test_two_products_have_a_kind_of_one_name(path, tmp_path):
    """Each registry has its own class, version and sentence for it; a product's log refuses the other's events."""
    started = WorkerStarted(
        at=1.0, run_id="r", node="a", local_rank=0, incarnation=1, pid=7, host="h", started_at=0.5, joiner=False
    )
    machine = MachineStarted(at=2.0, machine="m")
    paths = {ELASTIC_EVENTS: path, FACTORY_EVENTS: tmp_path / "factory.jsonl"}
    for registry, event in ((ELASTIC_EVENTS, started), (FACTORY_EVENTS, machine)):
        log = EventLog(registry, paths[registry])
        log.write(event)
        log.close()
        assert list(read_events(registry, paths[registry])) == [event]
    assert (started.kind, started.to_json()["v"]) == ("worker_started", 2)
    assert (machine.kind, machine.to_json()["v"]) == ("worker_started", 1)
    assert [registry.kinds["worker_started"] for registry in paths] == [WorkerStarted, MachineStarted]
    assert (machine.describe(), FACTORY_EVENTS.important) == ("m takes tasks", {"worker_started"})
    assert "worker_started" not in ELASTIC_EVENTS.important
    with pytest.raises(AssertionError, match="worker_started is an event of another product"):
        EventLog(ELASTIC_EVENTS).write(machine)


def test_a_kind_is_registered_once():
    """A second class of one name, and an important kind without a sentence, are mistakes found at import."""
    with pytest.raises(AssertionError, match="worker_started is MachineStarted already"):
        FACTORY_EVENTS.register("worker_started")(MachineStarted)
    with pytest.raises(AssertionError, match="task: important, but no sentence"):

        @FACTORY_EVENTS.register("task", important=True)
        @dataclass(frozen=True, kw_only=True)
        class Task(Event):
            number: int


def test_a_version_needs_its_migration():
    with pytest.raises(AssertionError, match="a migration from each older version"):
        EventRegistry(version=3, migrations={1: print})


def test_each_registry_migrates_its_own_lines():
    """A registry's migration renames a field in lines of the version before it; the JSON that it was given stays."""

    def renamed(data):
        data["machine"] = data.pop("host")

    registry = EventRegistry(version=2, migrations={1: renamed})

    @registry.register("machine")
    @dataclass(frozen=True, kw_only=True)
    class Machine(Event):
        machine: str

    line = {"v": 1, "kind": "machine", "at": 1.0, "host": "m"}
    assert registry.from_json(line) == Machine(at=1.0, machine="m")
    assert line["v"] == 1
    assert "host" in line
