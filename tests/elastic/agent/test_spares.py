"""Spares: what they import beforehand, how one becomes the worker, and that none outlives its agent."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dtf_lightning.elastic.agent.restart.spare_process import imported_modules, is_packaged
from dtf_lightning.elastic.agent.restart.spares import Spare, Spares

SCRIPT = """
import json, os, sys
import marked
if __name__ == "__main__":
    place = sys.modules["__main__"]
    print(json.dumps([sys.argv, os.environ["RANK"], "GONE" in os.environ, sys.path[0], place.__file__, vars(place) is globals()]))
    print("told", file=sys.stderr)
    sys.exit(7)
"""
MARKED = "import os\nopen(os.path.join(os.path.dirname(__file__), 'imported'), 'a').write('once ')\n"


@pytest.fixture
def script(tmp_path):
    (tmp_path / "marked.py").write_text(MARKED)
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return path


def test_what_is_imported():
    """The top level's packages, in order; nothing relative, nothing inside functions."""
    text = (
        "from __future__ import annotations\nimport torch.nn as nn, json\nfrom . import own\n"
        "from lightning.pytorch import Trainer\nimport json\ndef f():\n    import pandas\n"
    )
    assert imported_modules(text) == ["torch.nn", "json", "lightning.pytorch"]


def test_own_modules_wait_for_the_worker(script):
    """A module beside the script is the user's: its side effects happen once, in the worker."""
    assert is_packaged("json", script)
    assert is_packaged("yaml", script)
    assert not is_packaged("no_such_module", script)
    sys.path.insert(0, str(script.parent))
    try:
        assert not is_packaged("marked", script)
    finally:
        sys.path.remove(str(script.parent))


@pytest.mark.process
def test_becomes_the_worker(script, monkeypatch):
    """As if started cold: arguments, environment, `__main__`, output streams, exit code."""
    monkeypatch.setenv("GONE", "1")
    adopted: list[tuple[int, int]] = []
    spares = Spares(str(script), 1, 60.0, lambda pid, local_rank: adopted.append((pid, local_rank)))
    out, err = script.parent / "out", script.parent / "err"
    try:
        spares.fill()
        spares.wait_until_ready()
        assert not (script.parent / "imported").exists()
        with out.open("w") as out_file, err.open("w") as err_file:
            args = [sys.executable, "-u", str(script), "--epochs", "3"]
            process = spares.take(args, {"RANK": "2"}, [out_file, err_file])
            assert process is not None
            assert process.wait(60) == 7
            assert spares.take(args, {"RANK": "2"}, [out_file, err_file]) is None  # there was one only
    finally:
        spares.close()
    expected = f'[["{script}", "--epochs", "3"], "2", false, "{script.parent}", "{script}", true]\n'
    assert (out.read_text(), err.read_text()) == (expected, "told\n")
    assert adopted == [(process.pid, 0)]
    assert (script.parent / "imported").read_text() == "once "


@pytest.mark.process
def test_other_commands_start_cold(script):
    """A module, another program, another script: not what the spare has prepared for."""
    spares = Spares(str(script), 1, 60.0, lambda *_: None)
    try:
        spares.fill()
        for args in ([sys.executable, "-u", "-m", "train"], ["/bin/true"], [sys.executable, "-u", "other.py"]):
            assert spares.take(args, {}, []) is None
    finally:
        spares.close()


@pytest.mark.process
def test_ends_with_its_agent(script):
    """The channel's end is the spare's, while it imports or after."""
    spare = Spare(str(script))
    assert spare.wait_until_ready(30)
    spare._channel.close()
    assert spare.process.wait(60) == 0


@pytest.mark.process
def test_dead_spare_is_no_worker(script):
    """A spare that was killed meanwhile (out of memory): the worker starts cold."""
    spares = Spares(str(script), 1, 60.0, lambda *_: None)
    try:
        spares.fill()
        [spare] = spares._spares
        spare.process.kill()
        spare.process.wait()
        assert spares.take([sys.executable, "-u", str(script)], {}, []) is None
    finally:
        spares.close()


@pytest.mark.process
def test_torchelastic_gets_it(script):
    """torch starts its workers through the one method that is replaced, and gets it back at the end."""
    from torch.distributed.elastic.multiprocessing.subprocess_handler.subprocess_handler import SubprocessHandler

    original = SubprocessHandler._popen
    spares = Spares(str(script), 1, 60.0, lambda *_: None)
    try:
        spares.install()
        spares.fill()
        pids = {spare.process.pid for spare in spares._spares}
        out = str(script.parent / "log")
        handler = SubprocessHandler(sys.executable, ("-u", str(script)), {"RANK": "0"}, out, out, 0, None)
        handler._stdout.close()
        handler._stderr.close()
        assert handler.proc.pid in pids  # although it has not imported anything yet
        assert isinstance(handler.proc, subprocess.Popen)
        assert handler.proc.wait(60) == 7
    finally:
        spares.close()
    assert SubprocessHandler._popen is original
