"""The event log: what is written comes back, and what was torn does not."""

from __future__ import annotations

import errno
import json
import os
import re

import pytest

from dtf_lightning.events.log import (
    EventLog,
    EventLogError,
    GenerationFormed,
    NewerEvents,
    UnknownEvent,
    WorkerLost,
    WorkerRescaled,
    parse_event,
    read_events,
)

FORMED = GenerationFormed(
    at=1.5, source="a", generation=2, rescale="join", reason="b joined", members=("a#1", "b#1"), world_size=2
)
LOST = WorkerLost(at=2.5, source="a", node="a", local_rank=0, reason="killed")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events" / "a.jsonl"


def test_round_trip(path):
    """Events of two writers come back in order, with their types."""
    first, second = EventLog(path), EventLog(path)
    first.write(FORMED)
    second.write(LOST)
    first.close()
    second.close()
    first.write(LOST)  # closed: swallowed
    assert list(read_events(path)) == [FORMED, LOST]


def test_torn_last_line(path):
    """A process killed in mid-write costs its last line and nothing else."""
    log = EventLog(path)
    log.write(FORMED)
    log.close()
    with path.open("ab") as file:
        file.write(b'{"v":1,"kind":"worker_l')
    assert list(read_events(path)) == [FORMED]


def test_broken_line(path):
    """A broken line in the middle is an error that names the line."""
    path.parent.mkdir()
    path.write_text(json.dumps(LOST.to_json()) + "\nnonsense\n{}\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:2: expected one JSON object a line, got b'nonsense'"):
        list(read_events(path))


def test_unknown_kind(path):
    """An event of a kind that this version does not know is kept as it was read."""
    path.parent.mkdir()
    path.write_text('{"v":2,"kind":"teleported","at":3.0,"source":"a"}\n')
    (event,) = read_events(path)
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
    (event,) = read_events(path)
    assert isinstance(event, WorkerRescaled)
    assert event.incarnation == 0


def test_newer_version_is_refused(path):
    """With what to do about it, and where."""
    path.parent.mkdir()
    path.write_text('{"v":99,"kind":"teleported","at":3.0,"source":"a"}\n')
    with pytest.raises(NewerEvents, match=r"a\.jsonl:1: event version 99, this program reads up to 2; .* --upgrade"):
        list(read_events(path))


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
        parse_event(json.dumps({**LOST.to_json(), **changed}))


def test_missing_field():
    data = LOST.to_json()
    del data["reason"]
    with pytest.raises(EventLogError, match="worker_lost: reason is missing"):
        parse_event(json.dumps(data))


def test_events_wait_for_their_file(path):
    """An agent learns from its workers where the run's folder is."""
    log = EventLog()
    log.write(FORMED)
    log.open(path)
    log.write(LOST)
    log.close()
    assert list(read_events(path)) == [FORMED, LOST]


def test_folder_that_cannot_be_written_to(tmp_path, caplog):
    """One warning, and no exception ever."""
    (tmp_path / "file").touch()
    log = EventLog(tmp_path / "file" / "events" / "a.jsonl")
    log.write(LOST)
    log.write(LOST)
    log.close()
    assert [record.message[:70] for record in caplog.records] == [
        f"the event log cannot be written ({tmp_path}/file/events/a.jsonl: Not a"[:70]
    ]


def test_disk_full(path, caplog, monkeypatch):
    """A write that the disk cuts short costs its line and one warning; what comes after it is whole again."""
    log = EventLog(path)
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
    assert [parse_event(line) for line in (lines[0], lines[2])] == [FORMED, LOST]
    assert len(lines) == 3


def _no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")
