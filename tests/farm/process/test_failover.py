"""Three coordinators on three etcd members, with two workers: one after the other is killed, or stands still."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

from dtf_lightning.clock import poll_until
from dtf_lightning.farm.client import Client
from dtf_lightning.farm.http import FarmUnreachable
from dtf_lightning.farm.worker.offer import keep_profile
from support.farm.whole import DEADLINE, DTF, PROFILE

pytestmark = pytest.mark.process


class Part:
    """A process of the farm, by its command line."""

    def __init__(self, folder: Path, name: str, *arguments: str) -> None:
        self.name = name
        with (folder / f"{name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [*DTF, "farm", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def first_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGCONT)
        self.process.send_signal(number)
        self.process.wait(DEADLINE)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Cluster:
    """Coordinators c0 to c2, workers w0 and w1."""

    def __init__(self, folder: Path, etcd, farm: str) -> None:
        self.folder, self.etcd, self.farm = folder, etcd, farm
        self.token = folder / "token"
        self.coordinators = {name: self.coordinator(name) for name in ("c0", "c1", "c2")}
        self.urls = {name: part.first_line() for name, part in self.coordinators.items()}
        self.client = Client(",".join(self.urls.values()), self.token)
        self.client.connection.patience = DEADLINE
        self.workers = {name: self.worker(name) for name in ("w0", "w1")}
        for part in self.workers.values():
            assert part.first_line()

    def coordinator(self, name: str) -> Part:
        config = self.folder / "coordinator.yaml"
        config.write_text(
            f"farm: {{name: {self.farm}, folder: files}}\n"
            f"etcd: {{endpoint: '{self.etcd.endpoint}'}}\n"
            "server: {port: 0, workers_port: 0}\n"
            "security: {token_file: token, token_expiry: 86400}\n"
            "health_monitor: {worker_grace: 60}\n"
        )
        return Part(self.folder, name, "coordinator", "--name", name, "--config", str(config))

    def worker(self, name: str) -> Part:
        folder = self.folder / name
        keep_profile(folder, PROFILE)
        return Part(
            self.folder, name, "worker", "--name", name, "--coordinator", ",".join(self.urls.values()),
            "--token-file", str(self.token), "--folder", str(folder), "--cpus", "1",
        )  # fmt: skip

    def leader(self) -> str:
        def leads() -> str:
            with contextlib.suppress(FarmUnreachable):
                leader = str(self.client.connection.ask("GET", "/api/cluster/status")["leader_id"])
                if leader in self.coordinators and self.coordinators[leader].process.poll() is None:
                    return leader
            return ""

        return poll_until(leads, DEADLINE, "somebody to lead")

    def held(self, name: str) -> tuple[str, Path, Path]:
        """A task that ends when a word is written into its gate."""
        gate, started = self.folder / f"{name}.gate", self.folder / f"{name}.started"
        os.mkfifo(gate)
        task = self.client.submit(["sh", "-c", f"echo x >> {started}; read word < {gate}; echo done"])
        poll_until(started.exists, DEADLINE, f"{name} to start")
        return task, gate, started

    def close(self) -> None:
        self.client.close()
        for part in self.workers.values():
            part.end(signal.SIGINT)
        for part in self.coordinators.values():
            if part.process.poll() is None:
                part.end(signal.SIGTERM)


def test_one_after_the_other(tmp_path, etcd_cluster, prefix):
    """The leader is killed, an etcd member is killed, the next leader stands still: whatever runs meanwhile runs once."""
    cluster = Cluster(tmp_path, etcd_cluster, prefix.split("/")[2])
    try:
        client = cluster.client
        leader = cluster.leader()
        held = cluster.held("all-along")

        # kill -9 of the leader: a task that is submitted right behind it runs.
        cluster.coordinators[leader].end(signal.SIGKILL)
        after_a_kill = client.submit(["echo", "1"])
        assert client.wait(after_a_kill, DEADLINE).status == "completed"
        second = cluster.leader()
        assert second != leader

        # kill -9 of a member of etcd, its leader.
        etcd_cluster.leader().kill()
        after_etcd = client.submit(["echo", "2"])
        assert client.wait(after_etcd, DEADLINE).status == "completed"

        # The leader stands still. The third one leads; the thawed one has nothing to say.
        second = cluster.leader()
        cluster.coordinators[second].signal(signal.SIGSTOP)
        after_a_freeze = client.submit(["echo", "3"])
        assert client.wait(after_a_freeze, DEADLINE).status == "completed"
        cluster.coordinators[second].signal(signal.SIGCONT)
        after_a_thaw = client.submit(["echo", "4"])
        assert client.wait(after_a_thaw, DEADLINE).status == "completed"

        # What ran through it all ran once, and so did the others.
        task, gate, started = held
        gate.write_text("go\n")
        info = client.wait(task, DEADLINE)
        assert (info.status, info.raw["metadata"]["attempt"]) == ("completed", 1)
        assert started.read_text() == "x\n"
        for number, done in enumerate((after_a_kill, after_etcd, after_a_freeze, after_a_thaw), 1):
            assert b"".join(client.logs(done)) == f"{number}\n".encode()
    finally:
        cluster.close()
