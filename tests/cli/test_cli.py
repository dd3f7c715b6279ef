"""The `dtf` command as its user sees it: what is printed where, and the exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from dtf_lightning import __version__
from dtf_lightning.__main__ import main
from dtf_lightning.elastic.rules.records import NodeRecord
from dtf_lightning.elastic.run.keys import RunInfo, RunKeys
from dtf_lightning.elastic.run.keys import encode as encode_json

DTF = Path(sys.executable).with_name("dtf")


@pytest.fixture
def run(store):
    """A run of two nodes that wait for their first generation, by its id."""
    keys = RunKeys(f"cli/{uuid.uuid4().hex}")  # a slash: ids are quoted
    lease = store.lease(60)
    store.put(keys.run, RunInfo(instance="i", min_nodes=3, max_nodes=4).encode())
    for name in ("alpha-1", "beta-2"):
        record = NodeRecord(node=name, host="localhost", num_workers=2, instance="i", ready_after=0)
        store.put(keys.node(name), encode_json(record.to_json()), lease=lease.id)
    yield keys.run_id
    lease.revoke()
    store.delete(keys.prefix, prefix=True)


def test_help_names_every_command(capsys):
    """`dtf --help` lists the commands and the exit codes."""
    with pytest.raises(SystemExit) as exited:
        main(["--help"])
    printed = capsys.readouterr().out
    assert exited.value.code == 0
    assert all(word in printed for word in ("etcd", "status", "drain", "Exit codes"))


def test_wrong_usage_is_two(capsys):
    """An option missing: argparse's own message."""
    with pytest.raises(SystemExit) as exited:
        main(["drain", "run7"])
    assert exited.value.code == 2
    assert "NODE" in capsys.readouterr().err


def test_console_script_runs():
    """The installed script, from outside."""
    result = subprocess.run([DTF, "--version"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"dtf-lightning {__version__}\n", "")


def test_a_users_mistake_is_one_message(capsys):
    """An endpoint that cannot be one: no traceback, nothing on stdout, 1."""
    assert main(["status", "--endpoint", "ftp://somewhere"]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("dtf status: ")
    assert "expected host:port" in captured.err
    assert "Traceback" not in captured.err


def test_an_unreadable_password_file(tmp_path, capsys):
    """It is named, and etcd is not asked."""
    assert main(["status", "--user", "me", "--password-file", str(tmp_path / "none")]) == 1
    assert f"the password file {tmp_path / 'none'} cannot be read" in capsys.readouterr().err


@pytest.mark.process
def test_the_prefix_names_the_whole_command(tmp_path, capsys):
    assert main(["results", "sync", str(tmp_path / "nope"), "--db", str(tmp_path / "db")]) == 1
    assert capsys.readouterr().err.startswith("dtf results sync: ")


def test_a_terminal_without_utf8(tmp_path):
    """Signs that the terminal's encoding lacks are replaced; nothing ends in a traceback."""
    (tmp_path / "größe").mkdir()
    result = subprocess.run(
        [DTF, "report", "größe"],
        capture_output=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
    )
    assert result.returncode == 1
    assert b"is no run's folder" in result.stderr
    assert b"Traceback" not in result.stderr


def test_status_of_a_run(etcd, run, capsys):
    """Who is there, by node; the run is found in the list too."""
    assert main(["status", run, "--endpoint", etcd.endpoint]) == 0
    printed = capsys.readouterr().out
    assert f"run {run}: running, mode=live, no generation yet, 3 to 4 nodes" in printed
    assert "alpha-1" in printed
    assert "beta-2" in printed
    assert main(["status", "--endpoint", etcd.endpoint]) == 0
    assert f"{run}: running, 2 nodes" in capsys.readouterr().out


@pytest.mark.process
def test_endpoint_from_the_environment(etcd, run, monkeypatch, capsys):
    """DTF_ETCD_ENDPOINT serves commands that are given none."""
    monkeypatch.setenv("DTF_ETCD_ENDPOINT", etcd.endpoint)
    assert main(["status", run]) == 0
    assert "alpha-1" in capsys.readouterr().out


@pytest.mark.process
def test_drain_asks_the_node(etcd, store, run, capsys):
    """By the beginning of its name; the request is in etcd, where the node's agent sees it."""
    assert main(["drain", run, "alpha", "--endpoint", etcd.endpoint]) == 0
    assert "alpha-1 was asked to leave" in capsys.readouterr().out
    assert store.get(RunKeys(run).drain("alpha-1")) is not None


@pytest.mark.process
@pytest.mark.parametrize("command", [["status", "nobody"], ["drain", "nobody", "n"]])
def test_an_unknown_run_names_those_there_are(etcd, run, capsys, command):
    """A typing mistake costs no second look-up."""
    assert main([*command, "--endpoint", etcd.endpoint]) == 1
    assert run in capsys.readouterr().err


@pytest.mark.process
def test_etcd_serves_until_sigterm():
    """`dtf etcd --port 0` says where it listens and that it is for one machine; SIGTERM ends it with 0."""
    with subprocess.Popen(
        [DTF, "etcd", "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        try:
            first = server.stdout.readline()
            server.send_signal(signal.SIGTERM)
            _, errors = server.communicate(timeout=60)
        finally:
            server.kill()
    assert "listens on 127.0.0.1:" in first
    assert "this machine only" in first
    assert server.returncode == 0, errors
