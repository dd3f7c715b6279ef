"""Long commands say on a terminal what they are at, and leave nothing behind."""

from __future__ import annotations

import contextlib
import io
import os
import pty
import re
import threading

import pytest

from dtf_lightning.__main__ import main
from dtf_lightning.cli import progress as cli_progress
from dtf_lightning.cli.progress import Progress
from dtf_lightning.elastic.events import ELASTIC_EVENTS, WorkerStarted
from dtf_lightning.events.log import EventLog, events_path


class Terminal(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.drawn = threading.Event()

    def isatty(self):
        return True

    def write(self, text):
        if "%" in text or "…" in text:
            self.drawn.set()
        return super().write(text)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(cli_progress, "PATIENCE", 0.0)


def test_share():
    """A bar, a share and seconds; erased in the end."""
    terminal = Terminal()
    with Progress("verifying", 8, stream=terminal) as progress:
        progress.advance(2)
        assert terminal.drawn.wait(60)
        assert re.fullmatch(r"verifying \[#{5}\.{15}\]  25% \d+ s", progress.line())
    assert terminal.getvalue().endswith("\r\x1b[K")
    assert "verifying [" in terminal.getvalue()


def test_no_terminal(capsys):
    """Nothing at all, and no thread."""
    stream = io.StringIO()
    with Progress("reading", stream=stream) as progress:
        assert not progress._thread.is_alive()
    assert stream.getvalue() == ""


def test_terminal_that_is_gone():
    """The work goes on."""
    reader, writer = os.pipe()
    os.close(reader)
    with contextlib.suppress(BrokenPipeError), os.fdopen(writer, "w") as stream:
        stream.isatty = lambda: True
        with Progress("reading", stream=stream) as progress:
            progress._thread.join(60)
            assert not progress._thread.is_alive()


@pytest.mark.parametrize("command", ["results", "report"])
def test_commands(tmp_path, monkeypatch, command):
    """On a real terminal the command shows its line, and what it prints is what it prints without one."""
    log = EventLog(ELASTIC_EVENTS, events_path(tmp_path / "run", "a"))
    log.write(
        WorkerStarted(
            at=2.0, source="a/0", run_id="run", node="a", local_rank=0, incarnation=1, pid=1, host="h", started_at=1.0,
            joiner=False,
        )
    )  # fmt: skip
    log.close()
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        drawn = threading.Event()
        original = Progress._write
        monkeypatch.setattr(Progress, "_write", lambda self, text: (original(self, text), drawn.set()))
        leave = Progress.__exit__
        monkeypatch.setattr(Progress, "__exit__", lambda self, *error: (drawn.wait(60), leave(self, *error))[1])
        arguments = {
            "results": ["results", "sync", str(tmp_path / "run"), "--db", str(tmp_path / "db")],
            "report": ["report", str(tmp_path / "run"), "--format", "json", "--output", str(tmp_path / "out")],
        }
        assert main(arguments[command]) == 0
        shown = os.read(master, 10_000).decode()
    os.close(master)
    assert "run: " in shown
    assert "of events" in shown
