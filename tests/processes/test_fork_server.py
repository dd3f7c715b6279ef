"""Processes that tests fork off do not outlive their test process."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TIMEOUT = 60.0

FORKING = """
import os, signal
from support.fork_server import fork_child
output = os.open(os.devnull, os.O_WRONLY)
print(fork_child(signal.pause, (), output, to_close=[], mortal=True), flush=True)
signal.pause()
"""


@pytest.mark.process
def test_a_forked_child_dies_with_a_server_that_is_killed():
    """It waits in a session of its own, where no signal of a terminal or a process group reaches it."""
    paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    with subprocess.Popen(
        [sys.executable, "-c", FORKING], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}
    ) as server:
        assert server.stdout is not None
        pid = int(server.stdout.readline())
        child = os.pidfd_open(pid)
        server.kill()
    try:
        ended = bool(select.select([child], [], [], TIMEOUT)[0])
        if not ended:
            signal.pidfd_send_signal(child, signal.SIGKILL)
        assert ended, f"process {pid} lives on"
    finally:
        os.close(child)
