"""What this machine has and what runs on it, for people who compare machines; and what this process uses of it."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shutil
import socket
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dtf_lightning.hardware.container import container_limits
from dtf_lightning.hardware.devices import describe_devices


def describe_hardware(folders: Mapping[str, Path], *, packages: Sequence[str] = ()) -> dict[str, Any]:
    """Names and numbers of this machine; what cannot be found out is left out. Sizes in bytes.

    Args:
        folders: those that matter to the caller, by a name for people, the most important one first: their disks are
            described, then those of temporary files and of shared memory.
        packages: whose versions matter.
    """
    found: dict[str, Any] = {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    for package in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[package.replace("-", "_")] = version(package)
    with contextlib.suppress(OSError, ValueError):
        found["memory"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return found | _physical_cores() | container_limits() | _disks(folders) | describe_devices()


def _physical_cores(cpus: Path = Path("/sys/devices/system/cpu")) -> dict[str, int]:
    cores = set()
    for topology in cpus.glob("cpu[0-9]*/topology"):
        with contextlib.suppress(OSError):
            cores.add(tuple((topology / name).read_text().strip() for name in ("physical_package_id", "core_id")))
    return {"cores_physical": len(cores)} if cores else {}


def _disks(folders: Mapping[str, Path]) -> dict[str, Any]:
    """Each disk once, by the first folder that lies on it."""
    disks, seen = [], set()
    for name, path in (
        *folders.items(),
        ("temporary", Path(tempfile.gettempdir())),
        ("shared memory", Path("/dev/shm")),
    ):
        with contextlib.suppress(OSError):
            here = next(parent for parent in (path, *path.parents) if parent.exists())
            device, usage = here.stat().st_dev, shutil.disk_usage(here)
            if device not in seen:
                seen.add(device)
                disks.append({"name": name, "path": str(path), "total": usage.total, "free": usage.free})
    found: dict[str, Any] = {"disks": disks}
    if disks:
        found |= {"disk": disks[0]["total"], "disk_free": disks[0]["free"]}
    return found


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


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
