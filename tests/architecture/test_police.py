"""The police itself: each kind of leak fails its test, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

LEAKING = """
import os, socket, subprocess, sys, threading
import pytest
from support import leaks

leaks.PATIENCE = 0.05
kept = []

def test_environment():
    os.environ["LEFT_BEHIND"] = "1"

def test_environment_was_restored():
    assert "LEFT_BEHIND" not in os.environ

def test_thread():
    threading.Thread(target=threading.Event().wait, args=(1,), name="left-behind", daemon=True).start()

def test_orphan():
    code = "import subprocess; subprocess.Popen(['sleep', '60'])"
    subprocess.run([sys.executable, "-c", code], check=True)

def test_socket():
    kept.append(socket.socket())

@pytest.mark.leaks(reason="shown to be allowed")
def test_allowed():
    kept.append(socket.socket())

@pytest.mark.leaks
def test_allowed_without_a_reason():
    pass

def test_clean():
    thread = threading.Thread(target=print)
    thread.start()
    subprocess.run(["true"], check=True)
"""


@pytest.mark.process
def test_every_kind_of_leak_fails_its_test(pytester: pytest.Pytester) -> None:
    """A run of eight tests, of which four leave something and one asks for leave without giving its reason."""
    tests = Path(__file__).parent.parent
    pytester.makeini(
        f"[pytest]\npythonpath = {tests}\naddopts = -p no:cacheprovider --strict-markers\nmarkers =\n  leaks(reason): x"
    )
    pytester.makeconftest((tests / "conftest.py").read_text())
    pytester.makepyfile(LEAKING)
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(passed=7, errors=5)
    result.stdout.fnmatch_lines_random(
        [
            "*environment: LEFT_BEHIND='1', was None*",
            "*thread: left-behind*",
            "*process: * sleep 60*",
            "*file *: socket:*",
            "*write the reason beside it*",
        ]
    )
