"""What a node has: container limits from both kinds of cgroup, accelerators of any vendor, and nothing that fails."""

from __future__ import annotations

import ctypes

import pytest

from dtf_lightning.elastic.reports.hardware_comparison import COMPARED
from dtf_lightning.hardware.container import container_limits
from dtf_lightning.hardware.devices import describe_devices
from dtf_lightning.hardware.machine import describe_hardware


def test_this_machine(tmp_path):
    """All that a node without accelerators has."""
    found = describe_hardware({"run": tmp_path / "run" / "not there yet"}, packages=("lightning", "not-installed"))
    assert found["cores"] >= 1
    assert found["memory"] > 1 << 28
    assert found["cpu"]
    assert {disk["name"] for disk in found["disks"]} >= {"run"}
    assert all(0 <= disk["free"] <= disk["total"] for disk in found["disks"])
    assert {"torch", "lightning", "python", "platform", "host", "devices"} <= found.keys()
    assert "not_installed" not in found
    assert not {"host", "disk", "disk_free", "disks"} & set(COMPARED)


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({}, "0::/\n", {}),
        ({"cpu.max": "150000 100000", "memory.max": "max"}, "0::/\n", {"cpu_limit": 1.5}),
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000", "a/b/memory.max": "1000"}, "0::/a/b\n",
         {"cpu_limit": 0.5, "memory_limit": 1000}),
        ({"cpu/a/cpu.cfs_quota_us": "200000", "cpu/a/cpu.cfs_period_us": "100000",
          "memory/memory.limit_in_bytes": "9223372036854771712"}, "2:cpu,cpuacct:/a\n1:memory:/b\n", {"cpu_limit": 2.0}),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000", "memory/b/memory.limit_in_bytes": "77"},
         "2:cpu:/\n1:memory:/b\n", {"memory_limit": 77}),
    ],
)  # fmt: skip
def test_container(tmp_path, files, own, expected):
    """The tightest limit of the process's group and those around it; `max` and version 1's huge number are none."""
    root = tmp_path / "cgroup"
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (tmp_path / "own").write_text(own)
    assert container_limits(root, tmp_path / "own") == expected


def library(**functions):
    """Stands for a vendor's library: each function returns 0 after it has filled in what it was given."""

    def make(fill):
        def call(*arguments):
            fill(*arguments)
            return 0

        return call

    return type("Library", (), {name: staticmethod(make(fill)) for name, fill in functions.items()})()


def set_value(reference, value):
    reference._obj.value = value


def set_text(buffer, text):
    buffer.value = text


NVML = library(
    nvmlInit_v2=lambda: None,
    nvmlDeviceGetCount_v2=lambda count: set_value(count, 2),
    nvmlDeviceGetHandleByIndex_v2=lambda _, handle: set_value(handle, 1),
    nvmlDeviceGetName=lambda _, text, __: set_text(text, b"NVIDIA Test"),
    nvmlDeviceGetMemoryInfo=lambda _, memory: memory._obj.__setitem__(0, 80 << 30),
    nvmlSystemGetDriverVersion=lambda text, _: set_text(text, b"550.1"),
    nvmlShutdown=lambda: None,
)
RSMI = library(
    rsmi_init=lambda _: None,
    rsmi_num_monitor_devices=lambda count: set_value(count, 1),
    rsmi_dev_name_get=lambda _, text, __: set_text(text, b"AMD Test"),
    rsmi_dev_memory_total_get=lambda _, __, memory: set_value(memory, 64 << 30),
    rsmi_version_str_get=lambda _, text, __: set_text(text, b"6.2"),
    rsmi_shut_down=lambda: None,
)


def installed(**libraries):
    def load(name):
        for beginning, found in libraries.items():
            if name.startswith(beginning):
                return found
        raise OSError(f"{name}: cannot open shared object file")

    return load


def test_vendors_libraries(tmp_path):
    """NVIDIA's and AMD's, side by side: name, memory and driver of each."""
    found = describe_devices(installed(libnvidia=NVML, librocm=RSMI), tmp_path)
    assert found["devices"] == [
        {"vendor": "NVIDIA", "name": "NVIDIA Test", "memory": 80 << 30},
        {"vendor": "NVIDIA", "name": "NVIDIA Test", "memory": 80 << 30},
        {"vendor": "AMD", "name": "AMD Test", "memory": 64 << 30},
    ]
    assert found["driver"] == "NVIDIA 550.1, AMD 6.2"


def test_library_that_fails(tmp_path):
    """A driver that does not answer, or a library without the functions, is as good as none."""
    broken = type("Broken", (), {"nvmlInit_v2": staticmethod(lambda: 9)})()
    assert describe_devices(installed(libnvidia=broken, librocm=object()), tmp_path)["devices"] == []


def test_bus(tmp_path):
    """Without any library: accelerators and display adapters of vendors of such, not a server's own display."""
    for slot, kind, vendor, device in (
        ("0", "0x030200", "0x10de", "0x2330"), ("1", "0x030000", "0x1a03", "0x2000"), ("2", "0x120000", "0x1da3", "0x1020"),
        ("3", "0x020000", "0x8086", "0x1563"), ("4", "0x120000", "0xabcd", "0x0001"),
    ):  # fmt: skip
        (tmp_path / slot).mkdir()
        for name, content in (("class", kind), ("vendor", vendor), ("device", device)):
            (tmp_path / slot / name).write_text(content + "\n")
    names = [device["name"] for device in describe_devices(installed(), tmp_path)["devices"]]
    assert names == ["NVIDIA 0x2330 (no driver)", "Habana 0x1020 (no driver)", "0xabcd 0x0001 (no driver)"]


def test_real_loader_without_libraries(tmp_path):
    """ctypes itself: what is not installed is passed over."""
    assert isinstance(describe_devices(ctypes.CDLL, tmp_path)["devices"], list)
