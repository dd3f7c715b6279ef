"""What the demo looks at and prints while it runs, and what it refuses before."""

from __future__ import annotations

import io
import signal

import pytest

from dtf_lightning.elastic.demo import run
from dtf_lightning.elastic.demo.display import Display
from dtf_lightning.elastic.demo.interruption import Interruption
from dtf_lightning.elastic.demo.observe import LedgerTail
from dtf_lightning.elastic.observe.ledger import Ledger
from dtf_lightning.errors import SettingsError
from support.store_worlds import ManualClock


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_without_a_terminal_only_lines():
    out = io.StringIO()
    display = Display(out, ManualClock())
    display.show("passing")
    display.say("stays")
    display.clear()
    assert out.getvalue() == "    0 s  stays\n"


def test_on_a_terminal_one_line_is_replaced():
    out = Terminal()
    display = Display(out, ManualClock())
    display.show("passing")
    display.show("too soon")
    display.say("stays")
    printed = out.getvalue()
    assert "passing" in printed
    assert "too soon" not in printed
    assert printed.endswith("\r\x1b[2K    0 s  stays\n")


def test_ledgers_are_followed(tmp_path):
    """What is added is seen; a line that is not whole yet waits for the next look."""
    tail = LedgerTail(tmp_path)
    assert tail.look() is None
    ledger = Ledger(tmp_path / "a.0.1.jsonl")
    ledger.begin(generation=1, rank=0, world_size=2, step=10, epoch=3)
    with ledger.path.open("a") as file:
        file.write('{"v":1,"kind":"draw","generation":1,"rank":0,')
        file.flush()
        assert tail.look().steps == 0
        file.write('"epoch":4,"step":12,"samples":[1],"padding":0}\n')
    seen = tail.look()
    ledger.close()
    assert (seen.number, seen.world_size, seen.steps, seen.epoch, seen.workers) == (1, 2, 2, 4, {"a.0.1"})


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_taken_in_a_pause(number):
    """Not where they come: what is being started or ended then is not lost. Afterwards all is as it was."""
    before = signal.getsignal(number)
    with Interruption() as interruption:
        interruption.pause()
        signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt):
            interruption.pause()
    assert signal.getsignal(number) is before


def test_a_folder_in_use_is_refused(tmp_path):
    """Two runs' logs in one folder would be two versions."""
    (tmp_path / "something").touch()
    with pytest.raises(SettingsError, match="is not empty"):
        run.run_demo(tmp_path, fast=True, keep=False, display=Display(io.StringIO()))


def test_without_scikit_learn(tmp_path, monkeypatch):
    """Said at once, with the line to install it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r"pip install 'dtf-lightning\[demo\]'"):
        run.run_demo(tmp_path, fast=True, keep=False)


def test_without_etcd(tmp_path, monkeypatch):
    """Said at once, with what to do."""

    def nothing():
        raise SettingsError("no usable etcd binary was found")

    monkeypatch.setattr(run, "find_etcd", nothing)
    with pytest.raises(SettingsError, match="no usable etcd"):
        run.run_demo(tmp_path / "demo", fast=True, keep=False)
    assert not (tmp_path / "demo").exists()
