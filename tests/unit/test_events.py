"""The event log: what is written comes back, and what was torn does not."""

from __future__ import annotations

import pytest

from dtf_lightning.events import EventLog, GenerationFormed, UnknownEvent, WorkerLost, read_events

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
    path.write_text("{}\nnonsense\n{}\n")
    with pytest.raises(ValueError, match=r"a\.jsonl:2: expected one JSON object a line, got b'nonsense'"):
        list(read_events(path))


def test_newer_kind(path):
    """An event of a kind that this version does not know is kept as it was read."""
    path.parent.mkdir()
    path.write_text('{"v":2,"kind":"teleported","at":3.0,"source":"a"}\n')
    (event,) = read_events(path)
    assert isinstance(event, UnknownEvent)
    assert (event.at, event.data["kind"]) == (3.0, "teleported")
