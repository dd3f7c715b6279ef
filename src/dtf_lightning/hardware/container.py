"""What a container lets this process have: cgroups of version 2 and 1, its own and those around it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

UNLIMITED = 1 << 60
"""Bytes; what version 1 says where there is no limit is a little less than 2^63."""


def container_limits(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> dict[str, float | int]:
    """`cpu_limit` in cores and `memory_limit` in bytes, the tightest there is; what is not limited is left out."""
    found: dict[str, float | int] = {}
    cpus = [limit for folder in _folders(root, own, "cpu") if (limit := _cpu_limit(folder)) is not None]
    memories = [limit for folder in _folders(root, own, "memory") if (limit := _memory_limit(folder)) is not None]
    if cpus:
        found["cpu_limit"] = min(cpus)
    if memories:
        found["memory_limit"] = min(memories)
    return found


def _folders(root: Path, own: Path, controller: str) -> Iterator[Path]:
    """Of this process's group and those above it, in both versions. Inside a container its own may be the root."""
    lines = []
    with contextlib.suppress(OSError):
        lines = own.read_text().splitlines()
    for line in ("0::/", f"1:{controller}:/", *lines):
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            base = root
        elif controller in names.split(","):
            base = root / controller
        else:
            continue
        inside = base / path.lstrip("/")
        yield inside
        yield from (parent for parent in inside.parents if parent.is_relative_to(base))


def _cpu_limit(folder: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    with contextlib.suppress(OSError, ValueError):
        quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return None if int(quota) < 0 else int(quota) / int(period)
    return None


def _memory_limit(folder: Path) -> int | None:
    for name in ("memory.max", "memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limit = int((folder / name).read_text())
            return limit if limit < UNLIMITED else None
    return None
