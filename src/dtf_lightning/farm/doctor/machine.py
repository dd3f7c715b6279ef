"""What this machine offers a farm, and what it lacks. It is only looked at: nothing is made, moved or changed.

What is looked at is gathered by `examine_machine`; what follows is decided by pure functions, one for each check.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dtf_lightning.errors import SettingsError
from dtf_lightning.etcd.server.embedded import INSTALL_HINT, find_etcd
from dtf_lightning.etcd.wire.version import EtcdVersion, version_advice
from dtf_lightning.farm.doctor.findings import Finding, Level
from dtf_lightning.hardware.container import container_limits
from dtf_lightning.hardware.devices import NO_DRIVER, describe_devices

OLDEST = (3, 11)
"""Of Python."""
FILES = 4096
"""Open files below which a coordinator of some hundred workers and clients gets into want."""
MEMORY = 2 << 30
"""Bytes below which torch's import alone leaves little to tasks."""
EXTRA = (
    "cloudpickle", "cronsim", "cryptography", "fastapi", "jinja2", "jwt", "numpy", "orjson", "prometheus_client", "psutil", "pyarrow", "pydantic",
    "uvicorn", "websockets",
)  # fmt: skip
"""Modules of the extra `farm`."""


def examine_machine() -> list[Finding]:
    """Look at this machine. Raises nothing for what may be wrong with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = container_limits()
    return [
        *check_python(sys.version_info[:3], Path(os.path.realpath(sys.executable)), os.geteuid()),
        *check_modules([name for name in EXTRA if importlib.util.find_spec(name) is None]),
        *_etcd_here(),
        *check_files(soft, hard),
        *check_memory(_memory(), limits.get("memory_limit"), limits.get("cpu_limit")),
        *check_groups(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")),
        *check_devices(describe_devices()),
    ]


def _etcd_here() -> Iterator[Finding]:
    try:
        binary = find_etcd()
    except SettingsError as error:
        yield from check_binary(None, None, str(error))
    else:
        yield from check_binary(binary.path, binary.version, "")


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# --- the checks ------------------------------------------------------------------------------------------------------


def check_python(version: Sequence[int], interpreter: Path, user: int) -> Iterator[Finding]:
    """Whether it is new enough, and whether other users may run it. `interpreter`: without links; `user`: who asks."""
    told = f"{'.'.join(map(str, version))} at {interpreter}"
    if tuple(version[:2]) < OLDEST:
        remedy = f"install Python {OLDEST[0]}.{OLDEST[1]} or newer, and make the environment with that"
        yield Finding(what="python", level=Level.BAD, told=f"{told} is too old", remedy=remedy)
        return
    closed = [folder for folder in reversed(interpreter.parents) if not _open_to_all(folder)]
    if user == 0 and closed:
        told = f"{told} lies in {closed[0]}, where only its owner may look: tasks and services of another user cannot run it"
        remedy = "make the environment with the system's own: `/usr/bin/python3 -m venv /opt/dtf-farm`"
        yield Finding(what="python", level=Level.WARNING, told=told, remedy=remedy)
        return
    yield Finding(what="python", level=Level.GOOD, told=told)


def _open_to_all(folder: Path) -> bool:
    try:
        return bool(folder.stat().st_mode & 0o001)
    except OSError:
        return False


def check_modules(missing: Collection[str]) -> Iterator[Finding]:
    """Whether the extra `farm` is installed. `missing`: its modules that are not."""
    if missing:
        told = f"not installed: {', '.join(sorted(missing))}"
        yield Finding(what="packages", level=Level.BAD, told=told, remedy="pip install 'dtf-lightning[farm]'")
    else:
        yield Finding(what="packages", level=Level.GOOD, told="all of the extra `farm` is installed")


def check_binary(path: Path | None, version: EtcdVersion | None, problem: str) -> Iterator[Finding]:
    """Whether there is an etcd to start here, which `dtf farm up` needs and a worker does not."""
    if path is None or version is None:
        yield Finding(what="etcd here", level=Level.WARNING, told=problem, remedy=INSTALL_HINT)
        return
    for told, remedy in version_advice(version):
        yield Finding(what="etcd here", level=Level.WARNING, told=f"{path} is {version}: {told}", remedy=remedy)
    if not version_advice(version):
        yield Finding(what="etcd here", level=Level.GOOD, told=f"{path} is {version}")


def check_files(soft: int, hard: int) -> Iterator[Finding]:
    """How many files a process may have open, sockets among them."""
    unlimited = soft == resource.RLIM_INFINITY
    told = f"a process may have {'any number of' if unlimited else soft} files open"
    if unlimited or soft >= FILES:
        yield Finding(what="open files", level=Level.GOOD, told=told)
        return
    may = hard == resource.RLIM_INFINITY or hard >= FILES
    remedy = (
        f"`ulimit -n {FILES if hard == resource.RLIM_INFINITY else min(hard, 65536)}` before it is started; `LimitNOFILE=65536` in a unit"
        if may
        else f"`LimitNOFILE=65536` in a unit, or a line `* hard nofile 65536` in /etc/security/limits.conf (now {hard})"
    )
    told += f": a connection is one, and a coordinator keeps 256 of them for itself; {FILES} are wanted"
    yield Finding(what="open files", level=Level.WARNING, told=told, remedy=remedy)


def check_memory(total: float, limit: float | None, cpus: float | None) -> Iterator[Finding]:
    """How much memory there is, and whether a container has less of the machine than it shows.

    Args:
        total: of the machine, in bytes.
        limit: of this container, in bytes; `None`: none.
        cpus: cores of this container; `None`: all.
    """
    have = total if limit is None else min(total, limit)
    told = f"{have / (1 << 30):.1f} GiB of memory" + (f" of {total / (1 << 30):.1f}" if have < total else "")
    told += f", {cpus:g} cores in this container" if cpus is not None else ""
    if have < MEMORY:
        remedy = "a worker here can say with `--memory MIB` what it offers; trainings need more"
        yield Finding(what="memory", level=Level.WARNING, told=told, remedy=remedy)
    else:
        yield Finding(what="memory", level=Level.GOOD, told=told)


def check_groups(root: Path, own: Path) -> Iterator[Finding]:
    """What could hold an attempt's processes together to its memory. `root`, `own`: where the kernel shows groups, and ours."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        lines = []
    places = {
        version: _inside(base, path)
        for version, base, path in [
            *(("v2", root, path) for number, names, path in lines if number == "0" and not names),
            *(("v1", root / "memory", path) for _, names, path in lines if "memory" in names.split(",")),
        ]
    }
    second = places.get("v2")
    if second is not None and _has_memory(second):
        if os.access(second, os.W_OK) and os.access(second / "cgroup.subtree_control", os.W_OK):
            yield Finding(what="cgroups", level=Level.GOOD, told=f"version 2, ours to use: {second}")
            return
        told = (
            f"version 2, but {second} is not ours to make groups in: each process of a task is held to its memory alone"
        )
        remedy = (
            "`Delegate=yes` in the worker's unit, or `systemd-run --user --scope -p Delegate=yes dtf farm worker ...`"
        )
        yield Finding(what="cgroups", level=Level.WARNING, told=told, remedy=remedy)
        return
    first = places.get("v1")
    if first is not None and os.access(first, os.W_OK):
        yield Finding(what="cgroups", level=Level.GOOD, told=f"version 1, ours to use: {first}")
        return
    told = "none that limits memory and is ours to use: each process of a task is held to its memory alone (rlimit)"
    remedy = "run the worker by a unit with `Delegate=yes`, or as root; in a container give it a cgroup of its own (`--cgroupns=private`)"
    yield Finding(what="cgroups", level=Level.WARNING, told=told, remedy=remedy)


def _inside(root: Path, path: str) -> Path:
    base = root / path.lstrip("/")
    return base if (base / "cgroup.procs").exists() else root


def _has_memory(base: Path) -> bool:
    try:
        return "memory" in (base / "cgroup.controllers").read_text().split()
    except OSError:
        return False


def check_devices(hardware: Mapping[str, Any]) -> Iterator[Finding]:
    """Whether accelerators that are plugged in have their drivers. `hardware`: as `describe_devices` tells."""
    names = [str(device["name"]) for device in hardware["devices"]]
    useless = [name.removesuffix(NO_DRIVER) for name in names if name.endswith(NO_DRIVER)]
    if useless:
        told = f"no driver for {', '.join(useless)}: a worker does not offer what it cannot use"
        remedy = "install the vendor's driver (`nvidia-smi`, `rocm-smi` or `xpu-smi` shows that it works); in a container pass it in (`--gpus all`)"
        yield Finding(what="accelerators", level=Level.WARNING, told=told, remedy=remedy)
    else:
        driver = f", driver {hardware['driver']}" if hardware.get("driver") else ""
        yield Finding(what="accelerators", level=Level.GOOD, told=(", ".join(names) or "none") + driver)
