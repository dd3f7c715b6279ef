"""What this machine has and what runs on it, for people who compare nodes; and what this process uses of it."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

COMPARED = ("cpu", "cores", "memory", "devices", "driver", "python", "torch", "nccl", "lightning", "dtf_lightning")
"""What makes a pool of nodes mixed when it differs."""


def describe_hardware(folder: Path) -> dict[str, Any]:
    """Names and numbers of this node; what cannot be found out is left out. Sizes in bytes. `folder`: whose disk."""
    found: dict[str, Any] = {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "devices": [],
    }
    for package in ("lightning", "dtf-lightning"):
        with contextlib.suppress(PackageNotFoundError):
            found[package.replace("-", "_")] = version(package)
    with contextlib.suppress(OSError, ValueError):
        found["memory"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError):
        disk = shutil.disk_usage(folder)
        found |= {"disk": disk.total, "disk_free": disk.free}
    return found | _container_limits() | _devices()


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _container_limits() -> dict[str, Any]:
    """Of cgroup v2; a limit of `max` is none."""
    found: dict[str, Any] = {}
    root = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        quota, period = (root / "cpu.max").read_text().split()
        if quota != "max":
            found["cpu_limit"] = int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        limit = (root / "memory.max").read_text().strip()
        if limit != "max":
            found["memory_limit"] = int(limit)
    return found


def _devices() -> dict[str, Any]:
    """CUDA's and ROCm's through torch. A driver that fails must not stop training."""
    try:
        if not torch.cuda.is_available():
            return {}
        devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        found: dict[str, Any] = {
            "devices": [{"name": device.name, "memory": device.total_memory} for device in devices],
            "driver": f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}",
        }
        if torch.distributed.is_nccl_available():
            nccl: Any = torch.cuda.nccl
            found["nccl"] = ".".join(map(str, nccl.version()))
    except (RuntimeError, AssertionError, AttributeError):
        return {}
    return found


def process_age() -> float:
    """Seconds since this process was started, as the kernel knows; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # Behind the last parenthesis, because a program's name may hold anything; field 22 is the start in ticks.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, uptime - ticks / os.sysconf("SC_CLK_TCK"))
    return 0.0


def resident_memory() -> int:
    """Bytes of host memory that this process holds now; its peak where the kernel does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def device_memory(device: torch.device) -> int | None:
    """Peak bytes allocated on the device since the last question; `None` for the CPU."""
    if device.type != "cuda":
        return None
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak
