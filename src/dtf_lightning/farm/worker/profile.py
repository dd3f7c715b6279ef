"""What a farm worker offers, found out on its machine: devices, labels, hardware and software, as one JSON value.

The hardware is described by a process of its own: that imports torch, which a worker can do without.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dtf_lightning import environment
from dtf_lightning.farm.worker.allotment import CPU
from dtf_lightning.farm.worker.software import BROWSERS, find_software, version_number
from dtf_lightning.farm.worker.variables import VISIBLE
from dtf_lightning.hardware.container import container_limits

MEBIBYTE = 1 << 20
RESERVE = 512
"""MiB that are kept for worker, keeper and system; a quarter of what there is, where that is less."""
HARDWARE_TIMEOUT = 120.0
"""Seconds for the description of the hardware; imports from a cold disk are nearly all of it."""

RESOURCES = {
    "NVIDIA": "gpu", "AMD": "gpu", "Intel": "gpu", "Habana": "hpu", "Google": "tpu", "Huawei": "npu", "AWS": "neuron",
    "Tenstorrent": "tensix", "Qualcomm": "qaic",
}  # fmt: skip
"""Vendor -> the resource that its accelerators are."""
OTHER = "accelerator"

_DESCRIBE = """
import json, sys
from pathlib import Path
from dtf_lightning.hardware.machine import describe_hardware
json.dump(describe_hardware({"worker": Path(sys.argv[1])}), sys.stdout)
"""


@dataclass(frozen=True, kw_only=True)
class WorkerProfile:
    """All that a worker says of its machine."""

    devices: Mapping[str, float]
    """Resource -> how much of it: `cpu` in cores, `memory` in MiB, accelerators by number."""
    device_names: Mapping[str, tuple[str, ...]]
    """Resource -> its devices, as `Executor` takes them: numbers of cores, accelerators as `vendor/index`."""
    labels: tuple[str, ...]
    """What a task may ask for by name: system, processor, Python, accelerators, programs, browsers."""
    hardware: Mapping[str, Any]
    """As `dtf_lightning.hardware` describes it. `error` says why that was not possible."""
    software: Mapping[str, Mapping[str, str]]
    """Label -> `path` and `version` of each program."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> WorkerProfile:
        """Raises `TypeError` and `KeyError` for what is no profile."""
        names = {resource: tuple(names) for resource, names in body["device_names"].items()}
        return cls(**{**body, "device_names": names, "labels": tuple(body["labels"])})


def worker_profile(folder: Path, *, timeout: float = HARDWARE_TIMEOUT) -> WorkerProfile:
    """Look at this machine. Takes seconds; whatever cannot be found out is left out.

    Args:
        folder: the worker's, whose disk is described.
        timeout: seconds for the hardware.
    """
    hardware, software = describe_apart(folder, timeout), find_software()
    names = device_names(hardware, sorted(os.sched_getaffinity(0)), environment.read(VISIBLE["nvidia"]))
    return WorkerProfile(
        devices=amounts(hardware, names),
        device_names=names,
        labels=labels(hardware, software),
        hardware=hardware,
        software=software,
    )


def describe_apart(folder: Path, timeout: float) -> dict[str, Any]:
    """The hardware, described by another process; what can be known without torch, and `error`, where that fails."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _DESCRIBE, str(folder)],
            capture_output=True,
            timeout=timeout,
            check=True,
            stdin=subprocess.DEVNULL,
        )
        found: dict[str, Any] = json.loads(done.stdout)
        return found
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        said = getattr(error, "stderr", None) or b""
        lines = said.decode(errors="replace").strip().splitlines()
        known = {"host": platform.node(), "platform": platform.platform(), "python": platform.python_version()}
        reason = f"{error}: {lines[-1]}" if lines else str(error)
        return {**known, "memory": memory, "devices": [], **container_limits(), "error": reason}


def device_names(hardware: Mapping[str, Any], cores: Sequence[int], visible: str | None) -> dict[str, tuple[str, ...]]:
    """Resource -> names of its devices.

    Args:
        hardware: as described.
        cores: that this process may use.
        visible: the worker's own `CUDA_VISIBLE_DEVICES`; `None`: it sees all.
    """
    found: dict[str, list[str]] = {CPU: [str(core) for core in cores]}
    counts: dict[str, int] = {}
    for device in hardware.get("devices", ()):
        vendor = str(device.get("vendor", "NVIDIA"))
        if str(device["name"]).endswith("(no driver)"):
            continue
        index = counts[vendor] = counts.get(vendor, -1) + 1
        found.setdefault(RESOURCES.get(vendor, OTHER), []).append(f"{vendor.lower()}/{index}")
    if visible is not None and "gpu" in found:
        shown = [f"nvidia/{name.strip()}" for name in visible.split(",") if name.strip() not in ("", "-1")]
        found["gpu"] = [name for name in found["gpu"] if not name.startswith("nvidia/")] + shown
    return {resource: tuple(names) for resource, names in found.items() if names}


def amounts(hardware: Mapping[str, Any], names: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    """Resource -> how much of it: what a container allows, where that is less than there is."""
    found = {resource: float(len(devices)) for resource, devices in names.items()}
    found[CPU] = min(found.get(CPU, 1.0), float(hardware.get("cpu_limit", found.get(CPU, 1.0))))
    sizes = [int(hardware[name]) for name in ("memory", "memory_limit") if name in hardware]
    if sizes:
        memory = min(sizes) // MEBIBYTE
        found["memory"] = float(memory - min(RESERVE, memory // 4))
    return found


def labels(hardware: Mapping[str, Any], software: Mapping[str, Mapping[str, str]]) -> tuple[str, ...]:
    """Words for what there is: `linux`, `x86_64`, `python3.11`, `nvidia`, `nvidia-h100-80gb-hbm3`, `podman`, `browser`."""
    found = {platform.system().lower(), platform.machine().lower(), *software}
    if "python" in software and (version := version_number(software["python"]["version"])):
        found.add(f"python{'.'.join(version.split('.')[:2])}")
    if set(BROWSERS) & software.keys():
        found.add("browser")
    for device in hardware.get("devices", ()):
        if not str(device["name"]).endswith("(no driver)"):
            found |= {str(device.get("vendor", "")).lower(), _word(str(device["name"]))}
    return tuple(sorted(found - {""}))


def _word(text: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
