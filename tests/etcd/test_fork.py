"""Forks beside a client: the parent's calls, watch and lease go on, and the child is kept from using them."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from dtf_lightning.errors import StoreError
from dtf_lightning.etcd import connect
from dtf_lightning.etcd.etcd_store import EtcdStore
from dtf_lightning.etcd.server.embedded import EmbeddedEtcd
from dtf_lightning.etcd.store import Put
from support.store_worlds import collect

FORK = multiprocessing.get_context("fork")
NUM_FORKS = 20
PATIENCE = 60.0


def in_child(function: Callable[[], str]) -> str:
    """What `function` returns in a forked child, as a DataLoader forks its workers. Fails the test if it hangs."""
    reader, writer = FORK.Pipe(duplex=False)
    child = FORK.Process(target=lambda: writer.send(function()))
    child.start()
    writer.close()
    try:
        assert reader.poll(PATIENCE), "the child hangs"
        answer = reader.recv()
        child.join(PATIENCE)
        assert child.exitcode == 0, "the child does not end"
        return answer
    finally:
        if child.is_alive():
            child.kill()
            child.join()
        child.close()
        reader.close()


@pytest.mark.process
def test_forks_do_not_disturb_the_parent(store: EtcdStore, prefix: str):
    """20 children come and go while a thread writes: every write succeeds, the watch tells each, the lease lives."""
    watch = store.watch(prefix)
    lease = store.lease(10)
    stop = threading.Event()
    num_written = 0

    def write() -> None:
        nonlocal num_written
        while not stop.is_set():
            store.put(prefix + "n", b"%d" % num_written)
            num_written += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(NUM_FORKS):
            assert in_child(lambda: "done") == "done"
    finally:
        stop.set()
        writer.join()
    events = collect(watch, num_written)
    assert [event.kv.value for event in events] == [b"%d" % number for number in range(num_written)]
    assert not lease.lost
    lease.revoke()
    watch.cancel()


@pytest.mark.process
def test_a_child_is_told(etcd: EmbeddedEtcd, store: EtcdStore, prefix: str):
    """Neither the parent's client nor a new one works in a forked child: an error at once instead of a hang."""

    def use(call: Callable[[], object]) -> Callable[[], str]:
        def run() -> str:
            try:
                call()
            except StoreError as error:
                return str(error)
            return "no error"

        return run

    calls = [
        lambda: store.get(prefix),
        lambda: store.txn([], [Put(prefix, b"")]),
        lambda: store.watch(prefix),
        lambda: store.lease(5),
        lambda: connect(etcd.endpoint),
    ]
    for call in calls:
        assert "a forked process cannot use grpc" in in_child(use(call))
    store.put(prefix + "k", b"the parent goes on")


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = ["env", *(f"{name}={value}" for name, value in variables.items()), sys.executable, "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.process
def test_fork_support_is_refused():
    """With grpc's own fork support on, forked children hang: connect refuses and says what to do."""
    result = run_python("from dtf_lightning.etcd import connect\nconnect('127.0.0.1:1')", GRPC_ENABLE_FORK_SUPPORT="1")
    assert result.returncode != 0
    assert "SettingsError: GRPC_ENABLE_FORK_SUPPORT=1 is set" in result.stderr
    assert "or set GRPC_ENABLE_FORK_SUPPORT=0" in result.stderr


@pytest.mark.process
def test_fork_support_is_switched_off():
    """Before grpc is imported; and if somebody else imported it first, a warning says so."""
    load = "import dtf_lightning.etcd.client, os; print(os.environ['GRPC_ENABLE_FORK_SUPPORT'])"
    clean = run_python(load)
    assert (clean.stdout, clean.stderr) == ("0\n", "")
    late = run_python("import grpc\n" + load, GRPC_ENABLE_FORK_SUPPORT="")
    assert "grpc was imported before" in late.stderr
