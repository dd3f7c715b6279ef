"""What a storm's end looks for."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from dtf_lightning.farm.testkit.leftovers import open_connections, processes_of


@pytest.mark.process
def test_processes_of_a_folder(tmp_path):
    """By command line or environment; those of a folder whose name only begins alike are not among them."""
    there = {}
    for name in ("w1", "w10"):
        with_argument = [sys.executable, "-S", "-c", "input()", str(tmp_path / name)]
        there[name] = subprocess.Popen(with_argument, stdin=subprocess.PIPE)
    variables = {**os.environ, "SOMETHING": f"x={tmp_path}/w1/work"}
    inside = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, env=variables)
    try:
        assert processes_of(tmp_path / "w1").keys() == {there["w1"].pid, inside.pid}
        assert processes_of(tmp_path).keys() == {there["w1"].pid, there["w10"].pid, inside.pid}
        assert str(tmp_path / "w10") in processes_of(tmp_path)[there["w10"].pid]
    finally:
        for process in (*there.values(), inside):
            process.communicate(b"\n")
    assert processes_of(tmp_path) == {}


def test_open_connections():
    """Those that others have opened to a port of ours; not ours to others, and not those that are closed."""
    before = open_connections(os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as client:
            server, _ = listener.accept()
            assert open_connections(os.getpid()) == before + 1
            client.shutdown(socket.SHUT_RDWR)
        server.close()
        assert open_connections(os.getpid()) == before
