"""Users and passwords on a channel without TLS: tokens that go stale, passwords that are wrong, and no word of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator

import pytest

from dtf_lightning.errors import AuthenticationFailed, SettingsError
from dtf_lightning.etcd import connect
from dtf_lightning.etcd.server.cluster import EtcdCluster
from dtf_lightning.etcd.server.embedded import EmbeddedEtcd
from dtf_lightning.etcd.store import Put, Txn
from dtf_lightning.etcd.wire.version import EtcdVersion
from support.etcd_cluster import etcdctl
from support.store_worlds import collect

PASSWORD = "correct horse"
ROOT = ("--user", "root:root-password")


@pytest.fixture
def guarded() -> Iterator[EtcdCluster]:
    """One etcd with authentication on. The user `trainer` may read and write under /dtf/ only."""
    # The cheapest bcrypt: the tests do not wait for what is no concern of theirs.
    with EtcdCluster(1, extra=("--bcrypt-cost", "4")) as cluster:
        endpoint = cluster.endpoint
        etcdctl(endpoint, "user", "add", "root:root-password")
        etcdctl(endpoint, "user", "grant-role", "root", "root")
        etcdctl(endpoint, "role", "add", "training")
        etcdctl(endpoint, "role", "grant-permission", "training", "--prefix=true", "readwrite", "/dtf/")
        etcdctl(endpoint, "user", "add", f"trainer:{PASSWORD}")
        etcdctl(endpoint, "user", "grant-role", "trainer", "training")
        etcdctl(endpoint, "auth", "enable")
        yield cluster


@pytest.mark.process
def test_tokens_go_stale(guarded: EtcdCluster):
    """Users are changed (the auth revision moves), the server restarts (its tokens are forgotten), both under a watch
    and a lease: calls, events and renewals go on."""
    lost = threading.Event()
    with connect(guarded.endpoint, user="trainer", password=PASSWORD, quiet=True) as store:
        watch = store.watch("/dtf/run/")
        lease = store.lease(20, on_lost=lost.set)
        store.put("/dtf/run/a", b"1", lease=lease.id)
        assert [event.kv.value for event in collect(watch, 1)] == [b"1"]

        etcdctl(guarded.endpoint, *ROOT, "user", "add", "another:one")
        store.put("/dtf/run/a", b"2", lease=lease.id)
        assert [event.kv.value for event in collect(watch, 1)] == [b"2"]

        (member,) = guarded.members
        member.kill()
        member.start()
        store.put("/dtf/run/a", b"3", lease=lease.id)
        assert [event.kv.value for event in collect(watch, 1)] == [b"3"]
        # A transaction, too: a stale token is refused before anything is done.
        etcdctl(guarded.endpoint, *ROOT, "user", "delete", "another")
        assert store.txn([], []).succeeded
        assert not lost.is_set()
        lease.revoke()
        assert collect(watch, 1)[0].kv.key == "/dtf/run/a"
        watch.cancel()


@pytest.mark.process
def test_who_may_not(guarded: EtcdCluster):
    """Wrong password, unknown user, no password at all, no permission: each is told, no secret is."""
    with pytest.raises(AuthenticationFailed, match="check the password of the user 'trainer'") as wrong:
        connect(guarded.endpoint, user="trainer", password="battery staple", quiet=True)
    with pytest.raises(AuthenticationFailed, match="'nobody'"):
        connect(guarded.endpoint, user="nobody", password="battery staple", quiet=True)
    with pytest.raises(AuthenticationFailed, match="asks for a user name and a password"):
        connect(guarded.endpoint, quiet=True)
    assert "staple" not in str(wrong.value)
    with connect(guarded.endpoint, user="trainer", password=PASSWORD, quiet=True) as store:
        assert PASSWORD not in repr(store) + repr(store._client) + repr(store._client.identity)
        with pytest.raises(AuthenticationFailed, match="lacks the permission") as forbidden:
            store.put("/elsewhere", b"")
        watch = store.watch("/dtf/")
        with pytest.raises(AuthenticationFailed):
            store.watch("/elsewhere/")
        # With a revision given, the watch itself is what gets refused.
        refused = store.watch("/elsewhere/", start_revision=1)
        with pytest.raises(AuthenticationFailed, match="elsewhere"):
            refused.get(60)
        refused.cancel()
        watch.cancel()
    assert PASSWORD not in str(forbidden.value)


@pytest.mark.process
def test_a_password_changed_while_we_run(guarded: EtcdCluster):
    """The token dies with the old password; the next call says what to check."""
    with connect(guarded.endpoint, user="trainer", password=PASSWORD, quiet=True) as store:
        store.put("/dtf/a", b"")
        etcdctl(guarded.endpoint, *ROOT, "user", "delete", "trainer")
        with pytest.raises(AuthenticationFailed, match="authenticating as 'trainer'"):
            store.put("/dtf/a", b"")


def test_a_password_that_nobody_asks_for(etcd: EmbeddedEtcd, caplog: pytest.LogCaptureFixture, prefix: str):
    """An etcd without authentication takes everybody: a warning, and it works."""
    with (
        caplog.at_level(logging.WARNING),
        connect(etcd.endpoint, user="trainer", password=PASSWORD, quiet=True) as store,
    ):
        store.put(prefix + "k", b"")
    assert "lets everybody in" in caplog.text
    assert PASSWORD not in caplog.text


def test_user_and_password_go_together():
    with pytest.raises(SettingsError, match="an etcd password was given alone") as caught:
        connect("127.0.0.1", password=PASSWORD)
    assert PASSWORD not in str(caught.value)
    with pytest.raises(SettingsError, match="an etcd user was given alone"):
        connect("127.0.0.1", user="trainer")


@pytest.mark.process
def test_batches_and_the_care_of_the_database(guarded: EtcdCluster):
    """A user may batch under its prefix, count and see sizes; defragmenting takes the role root.

    Elsewhere a batch is refused only by an etcd that looks into it (CVE-2026-33343): before, permissions end there.
    """
    with connect(guarded.endpoint, user="trainer", password=PASSWORD, quiet=True) as store:
        assert store.txn([], [Txn((), (Put("/dtf/farm/a", b""),))]).nested[0].succeeded
        assert store.count("/dtf/") == 1
        with pytest.raises(AuthenticationFailed):
            store.txn([], [Put("/other", b"")])
        elsewhere = [Txn((), (Put("/other", b""),))]
        if looks_into_batches(store.version):
            with pytest.raises(AuthenticationFailed):
                store.txn([], elsewhere)
        else:
            assert store.txn([], elsewhere).succeeded
        assert store.maintenance.status(timeout=10).members[0].leads
        with pytest.raises(AuthenticationFailed):
            store.maintenance.defragment()
    with connect(guarded.endpoint, user="root", password="root-password", quiet=True) as store:
        store.maintenance.compact(store.put("/dtf/farm/a", b"2"))
        store.maintenance.defragment()
        assert store.maintenance.alarms() == ()


def looks_into_batches(version: EtcdVersion) -> bool:
    fixed = {(3, 4): 42, (3, 5): 28, (3, 6): 9}
    return version.patch >= fixed.get((version.major, version.minor), 0)
