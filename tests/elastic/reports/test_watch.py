"""`dtf watch`: what is shown of a run that changes, of one that is not there, and while etcd is away."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import pytest

from dtf_lightning.elastic.cli.watch import _screen
from dtf_lightning.elastic.events import ELASTIC_EVENTS, Evaluated, StepsDone, WorkerRescaled
from dtf_lightning.elastic.reports import watch as watching
from dtf_lightning.elastic.reports.watch import PlainScreen, WatchedRun, sparkline, watch
from dtf_lightning.elastic.rules.generation import Generation, Member
from dtf_lightning.elastic.rules.status import NodeStatus, Role
from dtf_lightning.elastic.run.keys import RunPhase
from dtf_lightning.elastic.run.status import RunStatus
from dtf_lightning.errors import SettingsError, StoreUnavailable
from dtf_lightning.events.log import EventLog, events_path
from dtf_lightning.events.tail import EventTail


def node(name, role=Role.MEMBER, state="active", rank=0, detail=""):
    return NodeStatus(
        node=name, incarnation=1, role=role, state=state, ranks=range(rank, rank + 1), num_workers=1, detail=detail
    )


def status(number, *nodes, **changed):
    members = tuple(
        Member(node=n.node, incarnation=1, host="h", num_workers=1) for n in nodes if n.role in (Role.MEMBER, Role.OUT)
    )
    generation = Generation(
        number=number, members=members, kind="start" if number == 1 else "join", reason="because", epoch=1
    )
    values = {
        "run_id": "r", "phase": RunPhase.RUNNING, "mode": "live", "reason": "", "paused": False, "leader": "a",
        "generation": generation, "nodes": nodes, "min_nodes": 1, "max_nodes": 4, "started_at": 0.0,
        "events": tuple((10.0 * n, f"generation {n} formed") for n in range(1, number + 1)),
    }  # fmt: skip
    return RunStatus(**{**values, **changed})


START = status(1, node("a"), node("b", rank=1))
DYING = status(1, node("a"), node("b", Role.OUT, "failed", 1, "killed"), node("c", Role.STARTING, "joining"))
JOINED = status(2, node("a"), node("c", rank=1))
PAUSED = status(2, node("a"), node("c", rank=1), paused=True, reason="1 of 2 nodes")
DONE = status(2, phase=RunPhase.FINISHED, reason="all came to the end", leader=None)


def script(*answers):
    """Each look gets the next answer; an error is raised."""
    left = list(answers)

    def read():
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return read


def shown(*answers, tail=None):
    out = io.StringIO()
    good = watch(WatchedRun("r", script(*answers), tail), PlainScreen(out), interval=0)
    return good, [line.partition(" ")[2] for line in out.getvalue().splitlines()]


def test_what_happens_in_lines():
    """Without a terminal: every change in words, and the state when it changed."""
    good, lines = shown(START, START, DYING, JOINED, PAUSED, JOINED, DONE)
    assert good
    assert lines == [
        "generation 1 formed",
        "run running",
        "run r: running, generation 1 (start), 2 nodes, 2 workers",
        "b: out, failed (killed)",
        "c: starting, joining",
        "generation 2 formed",
        "b is gone",
        "c: member, active",
        "run r: running, generation 2 (join), 2 nodes, 2 workers",
        "paused: 1 of 2 nodes",
        "run r: paused, generation 2 (join), 2 nodes, 2 workers",
        "no longer paused",
        "run r: running, generation 2 (join), 2 nodes, 2 workers",
        "run finished: all came to the end",
        "run r: finished, generation 2 (join), 0 nodes, 0 workers",
    ]


def test_aborted_run():
    good, lines = shown(START, replace(DONE, phase=RunPhase.ABORTED, reason="too many failures"))
    assert not good
    assert "run aborted: too many failures" in lines


def test_etcd_away():
    """It is said once, what was known stays, and it is said when etcd is back."""
    away = StoreUnavailable("no endpoint answers")
    _, lines = shown(START, away, away, JOINED, DONE)
    at = lines.index("etcd is away: no endpoint answers")
    assert lines[at + 1].startswith("run r: running, generation 1 (start), 2 nodes, 2 workers, etcd is away: ")
    assert "etcd is back" in lines[at + 2 :]
    assert lines.count("etcd is away: no endpoint answers") == 1


def test_run_that_is_not_there_yet():
    """One may watch before the first node is started."""
    _, lines = shown(SettingsError("no run 'r' at this etcd"), START, DONE)
    assert lines[:2] == ["no run 'r' at this etcd", "run r: no run 'r' at this etcd"]
    assert "run running" in lines


@pytest.fixture
def logs(tmp_path):
    log = EventLog(ELASTIC_EVENTS, events_path(tmp_path, "a.0.1"))
    log.write(WorkerRescaled(at=1.0, source="a/0", generation=2, rescale="join", reason="c joined", world_size=2, rank=0,
                             step=5, pause=0.12, phases={}, redrawn=False))  # fmt: skip
    for step, loss in ((6, 2.0), (7, 1.0), (8, 0.5)):
        log.write(StepsDone(at=step, source="a/0", generation=2, world_size=2, rank=0, epoch=1, step=step, steps=1,
                            seconds=0.1, samples=8, data_wait=0.0, loss=loss, rss=50 * 2**20))  # fmt: skip
    log.write(Evaluated(at=9.0, source="a/0", generation=2, epoch=1, step=8, seconds=0.1, metrics={"val_loss": 0.25}))
    log.close()
    return EventTail(ELASTIC_EVENTS, tmp_path)


def test_steps_and_losses_come_from_the_logs(logs):
    _, lines = shown(JOINED, DONE, tail=logs)
    assert "join: 2 workers train again after 120 ms" in lines
    assert "evaluated at step 8: val_loss 0.25" in lines
    assert lines[-1].endswith("0 workers, epoch 1, step 8, loss 0.5, 80 samples/s")


def test_state_is_repeated_now_and_then(monkeypatch):
    """A log file shows that the run is alive although nothing happens."""
    monkeypatch.setattr(watching, "PLAIN_INTERVAL", 0.0)
    _, lines = shown(START, START, START, DONE)
    assert lines.count("run r: running, generation 1 (start), 2 nodes, 2 workers") == 3


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([], 10, ""),
        ([1.0], 10, "▁"),
        ([1.0, 1.0], 10, "▁▁"),
        ([0.0, 1.0, 2.0, 3.0], 4, "▁▃▆█"),
        ([0.0, 1.0, 2.0, 3.0], 2, "▁█"),
        ([9.0, 0.0, 0.0, 3.0, 3.0], 3, "▁█"),  # what does not fill a cell is left out, the oldest
    ],
)
def test_sparkline(values, width, expected):
    assert sparkline(values, width) == expected


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_screen(logs, monkeypatch):
    """On a terminal: nodes with their roles and steps, the loss as a line, what happened; the last picture stays."""
    pytest.importorskip("rich", reason="the live screen needs rich: pip install 'dtf-lightning[rich]'")
    for name, value in (("COLUMNS", "120"), ("LINES", "40"), ("TERM", "xterm")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", out := Terminal())
    screen = _screen(plain=False)
    run = WatchedRun("r", script(JOINED, StoreUnavailable("nobody answers")), logs)
    with screen:
        for _ in range(2):
            run.look()
            screen.show(run)
    last = out.getvalue()
    for text in ("run r", "running", "generation 2 (join)", "2 workers on 2 nodes", "epoch 1  step 8  80 samples/s", "leader",
                 "10.0", "50 MiB", "█▃▁", "0.5", "etcd is away: nobody answers", "join: 2 workers train again"):  # fmt: skip
        assert text in last, text
    assert last.rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_without_rich(monkeypatch, capsys):
    """Plain lines, and how to get more."""
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    monkeypatch.delitem(sys.modules, "dtf_lightning.elastic.reports.watch_screen", raising=False)
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert isinstance(_screen(plain=False), PlainScreen)
    assert "pip install 'dtf-lightning[rich]'" in capsys.readouterr().err
