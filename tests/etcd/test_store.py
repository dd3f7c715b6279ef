"""What only a real etcd can do to a store: change and compact between two pages of a range, end a lease by itself."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from dtf_lightning.errors import StoreError
from dtf_lightning.etcd.etcd_store import PAGE, EtcdStore
from dtf_lightning.etcd.server.embedded import EmbeddedEtcd
from dtf_lightning.etcd.store import Put
from dtf_lightning.etcd.wire import rpc
from support.etcd_cluster import etcdctl


def before_second_page(store: EtcdStore, monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """`act` once, when the first page of a range has been read."""
    call, pages = store._client.call, []

    def counted(procedure: rpc.Rpc, request: Any, **options: Any) -> Any:
        if procedure is rpc.RANGE:
            pages.append(request.revision)
            if len(pages) == 2:
                act()
        return call(procedure, request, **options)

    monkeypatch.setattr(store._client, "call", counted)


@pytest.fixture
def many(store: EtcdStore, prefix: str) -> list[str]:
    """Keys for two pages and a bit."""
    keys = [f"{prefix}{number:05d}" for number in range(2 * PAGE + 10)]
    for start in range(0, len(keys), 100):
        store.txn([], [Put(key, b"old") for key in keys[start : start + 100]])
    return keys


def test_pages_are_one_snapshot(store: EtcdStore, prefix: str, many: list[str], monkeypatch: pytest.MonkeyPatch):
    """Between two pages the last key is changed, one is deleted and one added: the range is as of its revision."""
    last = store.get(many[-1])

    def change() -> None:
        store.put(many[-1], b"new")
        store.delete(many[-2])
        store.put(prefix + "99999", b"new")

    before_second_page(store, monkeypatch, change)
    result = store.range(prefix)
    assert [kv.key for kv in result.kvs] == many
    assert {kv.value for kv in result.kvs} == {b"old"}
    assert result.revision == last.mod_revision


def test_a_compaction_between_two_pages(
    etcd: EmbeddedEtcd, store: EtcdStore, prefix: str, many: list[str], monkeypatch: pytest.MonkeyPatch
):
    """The snapshot is gone: the range is read again, at a newer revision."""

    def compact() -> None:
        revision = store.put(many[-1], b"new")
        etcdctl(etcd.endpoint, "compaction", str(revision))

    before_second_page(store, monkeypatch, compact)
    result = store.range(prefix)
    assert [kv.key for kv in result.kvs] == many
    assert result.kvs[-1].value == b"new"


def test_values_are_readable_with_etcdctl(etcd: EmbeddedEtcd, store: EtcdStore, prefix: str):
    store.put(prefix + "generation", b'{"number": 3}')
    assert etcdctl(etcd.endpoint, "get", "--print-value-only", prefix + "generation") == '{"number": 3}\n'


def test_many_threads_share_a_store(store: EtcdStore, prefix: str):
    """Calls, watches and leases from eight threads at once."""

    def work(number: int) -> None:
        own = f"{prefix}{number}/"
        watch, lease = store.watch(own), store.lease(5)
        for count in range(20):
            store.put(own, b"%d" % count, lease=lease.id)
        seen = 0
        while seen < 20:
            seen += len(watch.get(60) or ())
        lease.revoke()
        watch.cancel()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert store.range(prefix).kvs == ()


def test_closing_ends_calls_under_way(etcd: EmbeddedEtcd, store: EtcdStore, prefix: str):
    """A thread that is in the middle of calls gets an error, not a hang."""
    started = threading.Event()

    def call_on() -> None:
        while True:
            store.get(prefix)
            started.set()

    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(call_on)
        assert started.wait(60)
        store.close()
        with pytest.raises(StoreError, match="closed"):
            calling.result(60)
