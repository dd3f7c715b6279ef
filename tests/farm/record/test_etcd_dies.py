"""Members of etcd die or freeze with a batch under way, beneath two coordinators: nothing acknowledged is lost.

Each task is submitted through both coordinators, assigned by one, and its result is sent through both, as clients and
workers do that heard no answer. At the end the book is compared with what was said.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from dtf_lightning.etcd import connect
from dtf_lightning.etcd.election import Election
from dtf_lightning.etcd.server.cluster import EtcdCluster, Member
from dtf_lightning.etcd.store import Compare, Store
from dtf_lightning.farm.record.codec import decode
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.record import FarmRecord
from dtf_lightning.farm.record.values import Attempt, Envelope, TaskOutcome, TaskSpecification
from dtf_lightning.farm.record.writes import Assign, Decision, Recording, RecordResult, Submission, Submit
from support.farm.stores import HarmedStore

PATIENCE = 60.0
NUM_THREADS = 12


class Traffic:
    """Tasks that are submitted, assigned and recorded by many threads, and what was said of each."""

    def __init__(self, store: Store, records: list[FarmRecord], keys: FarmKeys, fence: Compare) -> None:
        self.said: dict[str, tuple[list[Submission], Decision, list[Recording]]] = {}
        self._store = store
        self._records = records
        self._keys = keys
        self._fence = fence
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._pool = ThreadPoolExecutor(NUM_THREADS)
        self._threads = [self._pool.submit(self._work) for _ in range(NUM_THREADS)]

    def _work(self) -> None:
        while not self._stop.is_set():
            task = f"t{next(self._numbers):06d}"
            said = self._one(task)
            with self._changed:
                self.said[task] = said
                self._changed.notify_all()

    def _one(self, task: str):
        submitted = [
            record.write(Submit(task=task, specification=specification(task, number)), timeout=PATIENCE)
            for number, record in enumerate(self._records)
        ]
        submissions = [future.result(PATIENCE).submission for future in submitted]
        attempt = Attempt(number=1, workers=(f"w-{task}",), epoch=self._fence.operand)
        assign = Assign(task=task, attempt=attempt, seen=0, fence=self._fence)
        decision = self._records[0].write(assign, timeout=PATIENCE).result(PATIENCE)
        revision = self._store.get(self._keys.key(Kind.ATTEMPT, task), timeout=PATIENCE).mod_revision
        recorded = [
            record.write(RecordResult(task=task, envelope=envelope(task, revision)), timeout=PATIENCE)
            for record in self._records
        ]
        return submissions, decision, [future.result(PATIENCE) for future in recorded]

    def flows(self, num_more: int) -> None:
        """Wait until so many more tasks are through."""
        with self._changed:
            goal = len(self.said) + num_more
            assert self._changed.wait_for(lambda: len(self.said) >= goal, PATIENCE), "nothing goes on"

    def stop(self) -> None:
        """Raises what a thread has raised."""
        self._stop.set()
        for thread in self._threads:
            thread.result(2 * PATIENCE)
        self._pool.shutdown()


def specification(task: str, coordinator: int = 0) -> TaskSpecification:
    return TaskSpecification(command=("run", task), submitted=float(coordinator + 1))


def envelope(task: str, revision: int) -> Envelope:
    return Envelope(outcome=TaskOutcome.COMPLETED, attempt=1, revision=revision, workers=(f"w-{task}",), reason=task)


def kill_connected(cluster: EtcdCluster, connected: Member, leader: Member) -> Callable[[], None]:
    return connected.kill


def kill_leader(cluster: EtcdCluster, connected: Member, leader: Member) -> Callable[[], None]:
    return leader.kill


def freeze_connected(cluster: EtcdCluster, connected: Member, leader: Member) -> Callable[[], None]:
    """What it held back when it was frozen may be made when it is thawed: long after it was made another way."""
    return connected.freeze


@pytest.mark.process
@pytest.mark.parametrize("harm", [kill_connected, kill_leader, freeze_connected])
def test_nothing_acknowledged_is_lost(etcd_cluster: EtcdCluster, harm):
    """No member is started again: what counts is what the others have."""
    leader = etcd_cluster.leader()
    connected = next(member for member in etcd_cluster.members if member is not leader)
    keys = FarmKeys("lab")
    with ExitStack() as stack:
        stores = [
            HarmedStore(stack.enter_context(connect(etcd_cluster.endpoint_from(connected), quiet=True))) for _ in "ab"
        ]
        for store in stores:
            store._client.make_current(0)
        lease = stores[0].lease(60)
        fence = Election(stores[0], keys.leader).try_acquire(b'{"v":1,"coordinator":"a"}', lease.id).fence
        records = [stack.enter_context(FarmRecord(store, "lab")) for store in stores]
        traffic = Traffic(stores[0], records, keys, fence)
        try:
            traffic.flows(50)
            stores[0].arm(harm(etcd_cluster, connected, leader))
            assert stores[0].harmed.wait(PATIENCE)
            traffic.flows(100)
            if harm is freeze_connected:
                connected.thaw()
                traffic.flows(100)
        finally:
            if harm is freeze_connected:
                connected.thaw()
            traffic.stop()
        check(traffic, stores[1], keys)
        if harm is freeze_connected:
            assert sum(counts.lost_answers for record in records for counts in record.counts().values()) > 0
        lease.revoke()


def check(traffic: Traffic, store, keys: FarmKeys) -> None:
    """What was said, and what is there."""
    done = store.range(keys.folder(Kind.DONE), timeout=PATIENCE).kvs
    book = {keys.parse(kv.key)[1][0]: kv for kv in done}
    assert book.keys() == traffic.said.keys()
    assert {kv.version for kv in done} == {1}
    assert store.count(keys.folder(Kind.TASK)) == store.count(keys.folder(Kind.ATTEMPT)) == 0
    revisions = set()
    for task, kv in book.items():
        recorded = decode(Kind.DONE, kv.value)
        assert recorded == envelope(task, recorded.revision)
        revisions.add(recorded.revision)
    submissions = Counter(tuple(sorted(s.value for s in said[0])) for said in traffic.said.values())
    assert set(submissions) == {("known", "new")}
    assert {said[1] for said in traffic.said.values()} == {Decision.MADE}
    assert {verdict for said in traffic.said.values() for verdict in said[2]} == {Recording.RECORDED}
