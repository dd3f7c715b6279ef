"""How busy a machine is, by what Linux tells."""

from __future__ import annotations

import pytest

from dtf_lightning.farm.rules.health import HealthStatus
from dtf_lightning.farm.worker.service.health import HealthReader


class Machine:
    """What a kernel would tell."""

    def __init__(self, proc):
        self.proc = proc
        self.now = 100.0
        (proc / "net").mkdir(parents=True)
        self.write()

    def write(self, busy=50, idle=150, received=1000, sent=2000):
        # user nice system idle iowait irq softirq steal guest guest_nice
        (self.proc / "stat").write_text(f"cpu  {busy} 0 0 {idle} 0 0 0 0 7 7\ncpu0 1 2 3\n")
        (self.proc / "meminfo").write_text("MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable: 250 kB\n")
        head = "Inter-| Receive\n face |bytes\n"
        lo, eth = (f"{name}: {r} 0 0 0 0 0 0 0 {s} 0\n" for name, r, s in (("lo", 9e9, 9e9), ("eth0", received, sent)))
        (self.proc / "net" / "dev").write_text(head + lo.replace("9000000000.0", "9000000000") + eth)
        (self.proc / "loadavg").write_text("1.50 1.00 0.50 1/200 4711\n")


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path / "proc")


def test_what_is_told(machine, tmp_path):
    """Use since the last reading, and rates without the loopback's."""
    reader = HealthReader(
        tmp_path, {"memory_percent": 70.0}, proc=machine.proc, monotonic=lambda: machine.now, wall=lambda: 5.0
    )
    first = reader.read()
    assert first.metrics["cpu_percent"] == pytest.approx(25.0)  # since the machine's start
    assert first.metrics["memory_percent"] == pytest.approx(75.0)
    assert 0 < first.metrics["disk_percent"] <= 100
    assert first.metrics["load"] == 1.5
    assert "received_bytes" not in first.metrics
    assert (first.status, first.at) == (HealthStatus.WARNING, 5.0)
    machine.now += 10
    machine.write(busy=140, idle=160, received=6000, sent=2000)
    second = reader.read()
    assert second.metrics["cpu_percent"] == pytest.approx(90.0)
    assert (second.metrics["received_bytes"], second.metrics["sent_bytes"]) == (500.0, 0.0)


def test_what_is_not_told_is_left_out(tmp_path):
    """Where there is no such kernel, and where the disk has gone."""
    health = HealthReader(tmp_path / "gone", {"cpu_percent": 1.0}, proc=tmp_path / "none").read()
    assert (health.metrics, health.status) == ({}, HealthStatus.HEALTHY)


def test_this_machine(tmp_path):
    """It tells all of these, two readings on."""
    reader = HealthReader(tmp_path, {})
    reader.read()
    assert {"memory_percent", "disk_percent", "load", "received_bytes", "sent_bytes"} <= reader.read().metrics.keys()


def test_how_far_trainings_are(machine, tmp_path):
    """By the file that a part's torchrun keeps; what is no such file is passed over."""
    texts = {"one": '{"generation": 2, "name": "x"}', "torn": '{"gener', "list": "[1]", "long": " " * 5000 + "{}"}
    for name, text in texts.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "training.jsonl").write_text(text)
    reader = HealthReader(
        tmp_path, {}, running=lambda: [(name, tmp_path / name) for name in (*texts, "none")], proc=machine.proc
    )
    assert reader.read().tasks == {"one": {"generation": 2.0}}
