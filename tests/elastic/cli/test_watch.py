"""`dtf watch` on a real terminal and in a pipe, beside a real etcd."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from dtf_lightning.elastic.rules.records import NodeRecord
from dtf_lightning.elastic.run.keys import RunInfo, RunKeys, RunPhase
from dtf_lightning.elastic.run.keys import encode as encode_json

pytestmark = pytest.mark.process

DTF = Path(sys.executable).with_name("dtf")


@pytest.fixture
def run(store):
    """A run that waits for a second node."""
    keys = RunKeys(f"watch-{uuid.uuid4().hex}")
    lease = store.lease(60)
    store.put(keys.run, RunInfo(instance="i", min_nodes=2, max_nodes=4).encode())
    record = NodeRecord(node="alpha-1", host="localhost", num_workers=2, instance="i", ready_after=0)
    store.put(keys.node(record.node), encode_json(record.to_json()), lease=lease.id)
    yield keys
    lease.revoke()
    store.delete(keys.prefix, prefix=True)


def read_terminal(descriptor: int) -> bytes:
    """What comes next; nothing when the other end is closed."""
    ready, _, _ = select.select([descriptor], [], [], 60)
    assert ready, "nothing came to the terminal for 60 s"
    try:
        return os.read(descriptor, 65536)
    except OSError:  # the terminal's other end is closed
        return b""


def test_ctrl_c_on_a_terminal(etcd, run):
    """A screen that redraws itself; Ctrl-C ends it with 130, gives the cursor back and prints no traceback."""
    pytest.importorskip("rich", reason="the live screen needs rich: pip install 'dtf-lightning[rich]'")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    command = [DTF, "watch", run.run_id, "--endpoint", etcd.endpoint]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as watching:
        os.close(theirs)
        seen = b""
        while b"alpha-1" not in seen:
            data = read_terminal(ours)
            assert data, f"it ended: {seen.decode()}"
            seen += data
        watching.send_signal(signal.SIGINT)
        while data := read_terminal(ours):
            seen += data
        assert watching.wait(60) == 130
    os.close(ours)
    text = seen.decode()
    assert "Traceback" not in text
    assert text.rstrip().endswith("\x1b[?25h")


def test_pipe(etcd, store, run):
    """Lines without control characters, to the end of the run: 0 when it has finished."""
    command = [DTF, "watch", run.run_id, "--endpoint", etcd.endpoint, "--interval", "0.05"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
        first = watching.stdout.readline()
        store.put(run.run, RunInfo(instance="i", phase=RunPhase.FINISHED, reason="trained", max_nodes=4).encode())
        rest, errors = watching.communicate(timeout=60)
    assert (watching.returncode, errors) == (0, "")
    assert "run running" in first
    assert "run finished: trained" in rest
    assert "\x1b" not in first + rest


@pytest.mark.parametrize("interval", ["0", "much"])
def test_interval(interval, etcd):
    result = subprocess.run([DTF, "watch", "r", "--interval", interval], capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "--interval" in result.stderr
