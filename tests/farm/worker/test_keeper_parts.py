"""Parts of the keeper without its processes: messages, streams, cgroups that a folder plays."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.clock import SystemClock
from dtf_lightning.errors import ProtocolError, SettingsError
from dtf_lightning.farm.worker.folders import WorkerFolders
from dtf_lightning.farm.worker.keeper import family
from dtf_lightning.farm.worker.keeper.attempt import KeptAttempt
from dtf_lightning.farm.worker.keeper.cgroups import NOWHERE, Group, Hierarchy
from dtf_lightning.farm.worker.keeper.messages import (
    Complete,
    End,
    Ended,
    Feed,
    Grown,
    Hello,
    Lines,
    Quit,
    Start,
    Started,
    Stop,
    end_from_json,
    end_to_json,
    pack,
    unpack,
)  # fmt: skip
from dtf_lightning.farm.worker.keeper.streams import Input, Output
from dtf_lightning.farm.worker.orders import AttemptOrder

END = End(status=9, exit_code=None, kind="failed", reason="x", started=1.0, ended=2.0, log_bytes=3)
MESSAGES = [
    Start(
        name="a.1", command=["sh"], environment={"A": "\udcff"}, folder="/", mark="M=1", timeout=None, grace=1.0,
        memory=5, cpus=[1], secrets=["s\n"], stdin=True, log_limit=9, sample=15.0,
    ),
    Feed(name="a", size=1, complete=False), Stop(name="a", kind="lost", reason="r"), Quit(),
    Started(name="a", at=1.5, confinement="rlimit"), Grown(name="a", size=2), Ended(name="a", end=END),
    Hello(confinement="cgroup v2"), Complete(),
]  # fmt: skip


@given(st.lists(st.integers(1, 50)))
def test_messages_come_as_they_went(cuts):
    """In whatever pieces the socket brings them."""
    data, lines, found = b"".join(map(pack, MESSAGES)), Lines(), []
    for cut in [*cuts, 1 << 20]:
        found += map(unpack, lines.add(data[:cut]))
        data = data[cut:]
    assert found == MESSAGES
    assert end_from_json(end_to_json(END)) == END


@pytest.mark.parametrize(
    "line", [b"", b"{}", b"[]", b"\xff", b'{"type": "Nothing"}', b'{"type": "Grown", "name": "a"}']
)
def test_what_is_no_message(line):
    with pytest.raises(ProtocolError, match="no message of a worker or its keeper"):
        unpack(line)


# --- streams -----------------------------------------------------------------------------------------------------------


def test_a_full_disk_holds_nobody_up(tmp_path):
    """What is printed is read, counted and dropped."""
    log = tmp_path / "log"
    log.symlink_to("/dev/full")
    output = Output(log, [], 1 << 30)
    os.set_blocking(output.writer, False)
    for _ in range(10):
        assert os.write(output.writer, bytes(1 << 16)) == 1 << 16
        assert output.pump()
    output.close()
    assert output.size == 0


def test_the_limit_of_a_log(tmp_path):
    """The note that something was dropped comes beyond it."""
    output = Output(tmp_path / "log", ["secret"], 8)
    os.write(output.writer, b"a secret secret")
    output.close()
    text = (tmp_path / "log").read_bytes()
    assert text == b"a *** **[dtf] 1 bytes of output were dropped: the log may have 8 bytes\n"
    assert output.size == len(text)


def test_input_that_comes_in_pieces(tmp_path):
    """It is written as far as the pipe takes it, and closed behind its end."""
    path = tmp_path / "stdin"
    path.write_bytes(bytes(1 << 20))
    it = Input(path)
    it.feed(1 << 20, complete=False)
    assert it.wants_to_write
    read = 0
    while it.wants_to_write:
        read += len(os.read(it.reader, 1 << 20))
        it.pump()
    assert it.writer >= 0
    it.feed(0, complete=True)
    while data := os.read(it.reader, 1 << 20):
        read += len(data)
    assert (read, it.writer) == (1 << 20, -1)
    it.close()


# --- cgroups -----------------------------------------------------------------------------------------------------------


def played(tmp_path, files: dict[str, str], own: str) -> Hierarchy:
    """cgroups as a folder."""
    for name, text in files.items():
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text(text)
    (tmp_path / "own").write_text(own)
    return Hierarchy("test", tmp_path / "root", tmp_path / "own")


V2 = {
    "a/cgroup.procs": f"{os.getpid()}\n",
    "a/cgroup.controllers": "cpu memory\n",
    "a/cgroup.subtree_control": "memory\n",
}
V1 = {"memory/b/cgroup.procs": "1\n"}


@pytest.mark.parametrize(
    ("files", "own", "confinement"),
    [
        (V2, "0::/a\n", "cgroup v2"),
        (V2 | {"a/cgroup.subtree_control": "cpu\n", "a/cgroup.controllers": "cpu\n"}, "0::/a\n", "rlimit"),
        (V2 | {"a/cgroup.subtree_control": "cpu\n", "a/cgroup.procs": "1\n"}, "0::/a\n", "rlimit"),
        (V1, "4:memory:/b\n0::/\n", "cgroup v1"),
        (V1 | V2, "4:memory:/b\n0::/a\n", "cgroup v2"),
        ({}, "0::/a\n", "rlimit"),
    ],
)  # fmt: skip
def test_which_cgroups_are_used(tmp_path, files, own, confinement):
    """Version 2 where its groups can limit memory, else 1, else none."""
    assert played(tmp_path, files, own).confinement == confinement


def test_no_cgroups():
    hierarchy = Hierarchy("test", NOWHERE)
    assert (hierarchy.confinement, hierarchy.make(), hierarchy.left_behind()) == ("rlimit", None, [])


def test_a_group_of_version_2(tmp_path):
    for name in ("memory.swap.max", "memory.oom.group", "cgroup.kill"):
        (tmp_path / name).write_text("")
    (tmp_path / "memory.events").write_text("low 0\noom 3\noom_kill 2\n")
    (tmp_path / "cgroup.procs").write_text("17\n18\n")
    group = Group(tmp_path, 2)
    group.limit(1 << 20)
    group.kill()
    written = {
        name: (tmp_path / name).read_text()
        for name in ("memory.max", "memory.swap.max", "memory.oom.group", "cgroup.kill")
    }
    assert written == {"memory.max": "1048576", "memory.swap.max": "0", "memory.oom.group": "1", "cgroup.kill": "1"}
    assert (group.oom_kills(), group.members()) == (2, {17, 18})


def test_a_group_of_version_1(tmp_path):
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    group = Group(tmp_path, 1)
    group.limit(1 << 20)
    assert (tmp_path / "memory.limit_in_bytes").read_text() == "1048576"
    assert (group.oom_kills(), group.members()) == (1, set())


# --- the family --------------------------------------------------------------------------------------------------------


def test_the_kernel_and_the_long_way_agree(monkeypatch):
    """Where the kernel does not list children, all processes are asked for their parent."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
    try:
        listed = family.children(os.getpid())
        assert pid in listed
        monkeypatch.setattr(family, "_kernel_tells_children", lambda: False)
        monkeypatch.setattr(family.os, "scandir", _without_tasks(os.scandir))
        assert family.children(os.getpid()) == listed
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    assert family.status(pid) is None
    assert not family.is_alive(pid)


@pytest.mark.parametrize("with_group", [True, False])
def test_a_signal_comes_once(monkeypatch, with_group):
    """To the members of a group through the group, to the others by themselves: a second SIGTERM means "at once"."""
    groups = {10: 10, 11: 10, 12: 12}
    got: list[int] = []
    monkeypatch.setattr(family.os, "getpgid", groups.__getitem__)
    monkeypatch.setattr(family.os, "killpg", lambda group, _: got.extend(pid for pid in groups if groups[pid] == group))
    monkeypatch.setattr(family, "signal_exactly", lambda pid, *_: got.append(pid))
    family.signal_all({10: 1, 11: 10, 12: 1}, signal.SIGTERM, group=10 if with_group else 0)
    assert sorted(got) == [10, 11, 12]


def _without_tasks(scandir):
    def patched(path):
        if str(path).endswith("/task"):
            raise FileNotFoundError(path)
        return scandir(path)

    return patched


# --- orders ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"command": ()}, {"command": ("",)}, {"task": ""}, {"command": ("a\0b",)}, {"environment": {"A=B": "x"}},
        {"environment": {"": "x"}}, {"secrets": {"A": "\0"}}, {"timeout": 0.0}, {"timeout": float("nan")}, {"grace": -1.0},
        {"amounts": {"cpu": -1.0}}, {"folder": "\0"},
    ],
)  # fmt: skip
def test_orders_that_cannot_be(wrong):
    with pytest.raises(SettingsError):
        AttemptOrder(**{"task": "t", "number": 1, "revision": 1, "command": ("true",)} | wrong)


def test_an_order_on_disk():
    """Without what must not lie there."""
    order = AttemptOrder(
        task="t", number=3, revision=9, command=("a", "b"), environment={"A": "hidden"}, secrets={"B": "hidden"},
        artifacts=("*.txt",), amounts={"cpu": 1.0}, timeout=3.0,
    )  # fmt: skip
    kept = order.kept_on_disk()
    assert "hidden" not in str(kept)
    again = AttemptOrder.from_json(kept | {"new": 1})
    assert (again.command, again.artifacts, again.timeout, again.revision) == (("a", "b"), ("*.txt",), 3.0, 9)


@pytest.mark.parametrize("memory", [None, 1 << 30])
def test_no_code_runs_between_fork_and_exec(tmp_path, monkeypatch, memory):
    """All of the keeper's memory would be forked for it. A memory limit alone has to be set there."""
    asked = []

    class Popen(subprocess.Popen):
        def __init__(self, *arguments, preexec_fn=None, **options):
            asked.append(preexec_fn)
            super().__init__(*arguments, preexec_fn=preexec_fn, **options)

    monkeypatch.setattr(subprocess, "Popen", Popen)
    folder = WorkerFolders(tmp_path).attempt("t", 1)
    folder.make()
    request = Start(
        name="t.1", command=["true"], environment={"PATH": os.environ["PATH"]}, folder=str(folder.work), mark="MARK=1", timeout=None,
        grace=1.0, memory=memory, cpus=[min(os.sched_getaffinity(0))], secrets=[], stdin=False, log_limit=1, sample=1.0,
    )  # fmt: skip
    cores = os.sched_getaffinity(0)
    attempt = KeptAttempt(request, folder, Hierarchy("test", NOWHERE), SystemClock())
    assert attempt.start() is None
    attempt.waited_for(*os.wait4(attempt.pid, 0))
    attempt.advance()
    assert attempt.close().status == 0
    assert [step is None for step in asked] == [memory is None]
    assert os.sched_getaffinity(0) == cores
