"""What a worker finds on its machine, and what it offers of that."""

from __future__ import annotations

import json
import os

import pytest

from dtf_lightning.farm.worker.profile import (
    RESERVE,
    WorkerProfile,
    amounts,
    describe_apart,
    device_names,
    labels,
    worker_profile,
)
from dtf_lightning.farm.worker.software import find_software, version_number

H100 = {"vendor": "NVIDIA", "name": "NVIDIA H100 80GB HBM3", "memory": 80 << 30}
MI300 = {"vendor": "AMD", "name": "AMD Instinct MI300X", "memory": 192 << 30}
GAUDI = {"vendor": "Habana", "name": "Habana 0x1020 (no driver)"}
HARDWARE = {"cores": 4, "memory": 64 << 30, "devices": [H100, MI300, H100, GAUDI]}


def test_devices():
    """Each by its vendor's own number; what has no driver is not offered."""
    names = device_names(HARDWARE, [0, 1, 4, 5], None)
    assert names == {"cpu": ("0", "1", "4", "5"), "gpu": ("nvidia/0", "amd/0", "nvidia/1")}
    assert amounts(HARDWARE, names) == {"cpu": 4.0, "gpu": 3.0, "memory": (64 << 10) - RESERVE}


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ("1", ("amd/0", "nvidia/1")),
        ("GPU-8932f937-d72c, 0", ("amd/0", "nvidia/GPU-8932f937-d72c", "nvidia/0")),
        ("-1", ("amd/0",)),
    ],
)
def test_a_worker_that_sees_some(visible, expected):
    """It offers what it was given."""
    assert device_names(HARDWARE, [0], visible)["gpu"] == expected


def test_a_container(tmp_path):
    """Its limits count, where they are less than the machine."""
    hardware = {"memory": 8 << 30, "cpu_limit": 1.5, "memory_limit": 1 << 30}
    assert amounts(hardware, {"cpu": ("0", "1", "2")}) == {"cpu": 1.5, "memory": 1024 - 256}
    assert amounts({"cpu_limit": 4.0}, {"cpu": ("0",)}) == {"cpu": 1.0}


def test_labels():
    software = {"python": {"version": "Python 3.12.1"}, "firefox": {"version": "Mozilla Firefox 140.0"}}
    found = set(labels(HARDWARE, software))
    assert {"linux", "python", "python3.12", "firefox", "browser", "nvidia", "nvidia-h100-80gb-hbm3", "amd"} <= found
    assert not any("habana" in label for label in found)


def program(folder, name, script):
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.mark.process
def test_programs(tmp_path):
    """What answers is there: a docker without its daemon is not; the first name that is installed counts."""
    program(tmp_path, "python3", "echo Python 3.11.7")
    program(tmp_path, "podman", '[ "$1" = info ] && echo 4.3.1')
    program(tmp_path, "docker", "echo 'cannot connect' >&2; exit 1")
    program(tmp_path, "chromium-browser", "echo; echo a browser; echo Chromium 140.0.1")
    program(tmp_path, "uv", "exit 0")
    (tmp_path / "git").write_text("no program")
    assert find_software(str(tmp_path)) == {
        "python": {"path": f"{tmp_path}/python3", "version": "Python 3.11.7"},
        "podman": {"path": f"{tmp_path}/podman", "version": "4.3.1"},
        "chromium": {"path": f"{tmp_path}/chromium-browser", "version": "Chromium 140.0.1"},
    }


@pytest.mark.parametrize(("text", "number"), [("git version 2.39.5", "2.39.5"), ("v20.1", "20.1"), ("none", "")])
def test_version_numbers(text, number):
    assert version_number(text) == number


@pytest.mark.process
def test_this_machine(tmp_path):
    """All of it, through JSON and back."""
    profile = worker_profile(tmp_path)
    assert WorkerProfile.from_json(json.loads(json.dumps(profile.to_json()))) == profile
    assert "error" not in profile.hardware
    assert profile.device_names["cpu"] == tuple(map(str, sorted(os.sched_getaffinity(0))))
    assert profile.devices["memory"] > 100
    assert "linux" in profile.labels


@pytest.mark.process
def test_hardware_that_cannot_be_described(tmp_path):
    """The worker offers what can be known otherwise, and says why."""
    found = describe_apart(tmp_path, 0.0)
    assert "timed out after 0.0 seconds" in found["error"]
    assert amounts(found, device_names(found, [0, 1], None))["memory"] > 100
