"""What keeps a farm from filling up: etcd's database, and the files of a coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
import uuid

import pytest

from dtf_lightning.clock import SystemClock, poll_until
from dtf_lightning.errors import StoreFull
from dtf_lightning.etcd import connect
from dtf_lightning.etcd.memory.backend import MemoryBackend
from dtf_lightning.etcd.memory.store import MemoryStore
from dtf_lightning.etcd.store import KeyValue, Put, Txn
from dtf_lightning.farm.http import FarmRefused
from dtf_lightning.farm.record.codec import encode
from dtf_lightning.farm.record.keys import FarmKeys, Kind
from dtf_lightning.farm.record.schedules.values import ScheduleRecord
from dtf_lightning.farm.record.values import TaskSpecification
from dtf_lightning.farm.results.artifacts import ArtifactStore
from dtf_lightning.farm.server.files import FarmFiles
from dtf_lightning.farm.server.pool import Pool
from dtf_lightning.farm.server.upkeep import quota as quota_module
from dtf_lightning.farm.server.upkeep.files import Housekeeping
from dtf_lightning.farm.server.upkeep.quota import QuotaWatch
from dtf_lightning.farm.server.upkeep.upkeep import EndRate
from dtf_lightning.farm.settings.coordinator import RetentionSettings
from support.etcd_cluster import EtcdCluster
from support.farm.server import DEADLINE, CoordinatorInThread

QUOTA = 4_000_000


@pytest.fixture(params=["memory", pytest.param("etcd", marks=pytest.mark.process)])
def small(request):
    """A store with a tiny quota."""
    if request.param == "memory":
        with MemoryStore(MemoryBackend(quota=QUOTA)) as store:
            yield store
        return
    with EtcdCluster(1, extra=("--quota-backend-bytes", str(QUOTA))) as cluster, connect(cluster.endpoint) as store:
        yield store


def fill(store):
    with contextlib.suppress(StoreFull):
        for _ in range(2000):
            store.put("/history", b"x" * 100_000)
    assert store.maintenance.alarms()


def watch(store, *, may_act=True):
    return QuotaWatch(store, QUOTA, may_act=lambda: may_act, clock=SystemClock())


class TestTheAlarm:
    def test_history_goes_and_the_alarm_with_it(self, small):
        """Compacted, defragmented, disarmed: leases are granted again, what is alive is as it was, new work is taken."""
        small.put("/kept", b"kept")
        fill(small)
        one = watch(small)
        asyncio.run(one.look())
        assert one.refusal == ""
        assert small.maintenance.alarms() == ()
        assert small.get("/kept").value == b"kept"
        small.lease(60).revoke()
        status = one.status()
        assert status["size"] < QUOTA * 0.75
        assert not status["alarm"]

    def test_it_stays_where_there_is_no_room(self, small):
        """What is alive fills it: silencing would only raise it anew. New work is refused, the record still takes results."""
        for number in range(36):
            with contextlib.suppress(StoreFull):
                small.put(f"/alive/{number}", b"x" * 100_000)
        fill(small)
        one = watch(small)
        asyncio.run(one.look())
        assert one.refusal.startswith("etcd has raised its alarm for space (its file has ")
        assert small.maintenance.alarms() != ()
        assert small.txn([], [Txn((), (Put("/result", b""),))]).succeeded

    def test_a_follower_only_looks(self, small):
        fill(small)
        one = watch(small, may_act=False)
        asyncio.run(one.look())
        assert one.refusal
        assert small.maintenance.alarms() != ()


def test_etcd_away_changes_nothing():
    """The verdict stays as it was, and the status says what the matter is."""
    store = MemoryStore()
    one = watch(store)
    asyncio.run(one.look())
    store.reachable = False
    asyncio.run(one.look())
    assert (one.refusal, bool(one.status()["problem"])) == ("", True)
    store.close()


@pytest.mark.process
def test_new_work_is_refused_and_what_runs_goes_on(tmp_path, monkeypatch):
    """At three quarters of the quota, through a coordinator; once there is room again, work is taken again."""
    from dtf_lightning.farm.tokens import read_token
    from support.farm.server import PlayedWorker

    monkeypatch.setattr(quota_module, "INTERVAL", 0.05)
    store = MemoryStore()
    coordinator = CoordinatorInThread(store, tmp_path, settings={"etcd.quota": 4.0})
    worker = PlayedWorker((coordinator.url,), read_token(coordinator.token_file))
    with coordinator.client() as client:
        task = client.submit(["x"])
        order = worker.next()
        for number in range(36):
            store.put(f"/other/{number}", b"x" * 100_000)

        def refused():
            try:
                client.submit(["y"])
            except FarmRefused as refusal:
                return refusal
            return None

        refusal = poll_until(refused, DEADLINE, "new work to be refused")
        assert refusal.status == 507
        assert "etcd's database is three quarters full" in str(refusal)
        assert "What was accepted goes on" in str(refusal)
        assert client.status()["room"]["etcd"]["refuses"]
        worker.end(order)
        assert client.wait(task, DEADLINE).status == "completed"
        for number in range(36):
            store.delete(f"/other/{number}")
        store.maintenance.compact(store.range("/").revision - 1)
        store.maintenance.defragment()
        poll_until(lambda: refused() is None, DEADLINE, "new work to be taken")
    worker.close()
    coordinator.stop()
    store.close()


@pytest.mark.process
def test_what_workers_say_of_their_machines(tmp_path):
    """It is shown by every coordinator, is in etcd once a minute at most, and goes with its worker."""
    from dtf_lightning.farm.messages import Heartbeat
    from dtf_lightning.farm.rules.health import judge_health
    from dtf_lightning.farm.tokens import read_token
    from support.farm.server import PlayedWorker

    store = MemoryStore()
    coordinator = CoordinatorInThread(store, tmp_path, settings={"health_monitor.worker_grace": 0.2})
    worker = PlayedWorker((coordinator.url,), read_token(coordinator.token_file))
    worker.wait_until_welcome()
    health = FarmKeys("f").key(Kind.HEALTH, "w")
    with coordinator.client() as client:
        (shown,) = client.workers()
        assert (shown["health_status"], shown["last_seen"], shown["performance_metrics"]) == (None, None, {})
        for load in (1.0, 2.0, 3.0):
            said = judge_health({"disk_percent": 97.0, "load": load}, {"disk_percent": 90.0}, at=1e9)
            worker._loop.loop.call_soon_threadsafe(worker.link.say, Heartbeat(health=said))
        poll_until(lambda: client.workers()[0]["health_status"], DEADLINE, "its health")
        task = client.submit(["x"])
        worker.end(worker.next())  # whatever was said before has been heard
        assert client.wait(task, DEADLINE).status == "completed"
        (shown,) = client.workers()
        assert (shown["health_status"], shown["performance_metrics"]["load"]) == ("critical", 1.0)
        assert shown["metadata"]["health"] == "disk_percent is 97, above 90"
        assert shown["last_seen"].startswith("2001-09-09T01:46:40")
        assert store.get(health).version == 1
        worker.close()
        poll_until(lambda: client.workers() == [], DEADLINE, "the worker to be forgotten")
        assert store.get(health) is None
    coordinator.stop()
    store.close()


class TestFiles:
    @pytest.fixture
    def files(self, tmp_path):
        return FarmFiles(tmp_path, ArtifactStore(str(tmp_path / "artifacts"), 1000))

    def tidy(self, files, live=(), schedule=None, **settings):
        pool = Pool(FarmKeys("f"))
        if schedule is not None:
            pool.load([KeyValue("/dtf/farm/f/schedules/s", encode(schedule), 1, 1, 1)], 1)
        pool.live_tasks = lambda: iter(live)
        keeping = Housekeeping(files, pool, RetentionSettings(**settings), leads=lambda: True, clock=SystemClock())
        asyncio.run(keeping.round())
        return keeping.status()

    def old(self, tmp_path):
        long_ago = time.time() - 400 * 86400
        for folder, _, names in os.walk(tmp_path):
            for name in names:
                os.utime(os.path.join(folder, name), (long_ago, long_ago))

    def test_what_is_old_goes(self, files, tmp_path):
        """Logs, artifacts and sources; what is young stays, and so does what a live task needs."""
        import hashlib
        from types import SimpleNamespace

        done, live = (str(uuid.uuid4()) for _ in range(2))
        digests = {name: hashlib.sha256(name).hexdigest() for name in (b"unused", b"used", b"input")}
        for name, digest in digests.items():
            files.add_source(digest, [name])
        for task in (done, live):
            files.append_log(task, 7, 0, b"output")
            files.append_stdin(task, 0, b"input", complete=True)
            files.artifacts.put(task, 7, "a", hashlib.sha256(b"a").hexdigest(), [b"a"])
        assert self.tidy(files)["removed"] == dict.fromkeys(["logs", "artifacts", "stdin", "sources"], 0)
        self.old(tmp_path)
        asked = TaskSpecification(
            command=("x",), source=digests[b"used"], inputs={"a": f"sha256:{digests[b'input']}"}, stdin=live
        )
        task = SimpleNamespace(task=live, specification=asked)
        status = self.tidy(files, [task])
        assert status == {"removed": {"logs": 1, "artifacts": 1, "stdin": 1, "sources": 1}, "problem": ""}
        assert files.attempts_with_log(done) == []
        assert files.read_log(live, 7, 0, 10) == b"output"
        assert [one.task for one in files.artifacts.tasks()] == [live]
        assert files.source(digests[b"unused"]) is None
        assert files.source(digests[b"used"]) is not None
        assert files.source(digests[b"input"]) is not None
        assert (files.read_stdin(done, 0, 10), files.read_stdin(live, 0, 10)) == ((b"", False), (b"input", True))

    def test_what_a_schedule_takes_along_stays(self, files, tmp_path):
        """As long as it stands."""
        import hashlib

        digests = tuple(hashlib.sha256(name).hexdigest() for name in (b"source", b"input"))
        for name, digest in zip((b"source", b"input"), digests, strict=True):
            files.add_source(digest, [name])
        self.old(tmp_path)
        schedule = ScheduleRecord(plan="{}", cron="0 2 * * *", registered=1.0, decided=1.0, digests=digests)
        assert self.tidy(files, schedule=schedule)["removed"]["sources"] == 0
        assert self.tidy(files)["removed"]["sources"] == 2

    def test_a_source_that_was_used_meanwhile_stays(self, files, tmp_path):
        """Whoever asks whether it is there is going to submit a task with it."""
        import hashlib

        digest = hashlib.sha256(b"x").hexdigest()
        files.add_source(digest, [b"x"])
        self.old(tmp_path)
        assert files.source(digest) is not None
        files.remove_source(digest, time.time() - 60)
        assert files.source(digest) is not None

    def test_a_disk_that_does_not_let_go(self, files, tmp_path, monkeypatch):
        """It is said in the status, and ends nothing."""
        files.append_log(str(uuid.uuid4()), 7, 0, b"output")
        self.old(tmp_path)

        def broken(_):
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(files, "remove_log", broken)
        assert "Input/output error" in self.tidy(files)["problem"]


def test_how_many_tasks_end():
    """Steady ends give their rate, whatever the time since the start; silence lets it fade."""
    rate = EndRate(0.0)
    for second in range(2, 7200, 2):
        rate.ended(float(second))
    assert rate.per_second(7200.0) == pytest.approx(0.5, rel=0.01)
    assert rate.per_second(7200.0 + 3600.0) < 0.3
    assert EndRate(0.0).per_second(30.0) == 0.0
