"""A cgroup for each attempt, where the kernel and our rights allow it: version 2, else 1. Else there is rlimit.

A cgroup holds all processes of an attempt together to one limit, and its members are found whatever they do. `rlimit`
holds each process alone, to twice the limit; the keeper looks what they hold together and kills what exceeds it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import uuid
from dataclasses import dataclass
from pathlib import Path

from dtf_lightning.farm.worker.keeper import family

RLIMIT = "rlimit"
NOWHERE = Path("/proc/no-cgroups")
"""A root without groups."""
LEAF = "dtf-worker"
"""Group of version 2 into which the worker's own processes go: only a group without processes has groups that limit."""


@dataclass(frozen=True)
class Group:
    """The cgroup of one attempt."""

    path: Path
    version: int

    def join(self) -> None:
        """Put this process into it, and all that it starts from then on. Raises `OSError`."""
        (self.path / "cgroup.procs").write_text("0")

    def take(self, pid: int) -> None:
        """Put a process into it, and all that it starts from then on. Nothing happens if it has ended, or the kernel refuses."""
        with contextlib.suppress(OSError):
            (self.path / "cgroup.procs").write_text(str(pid))

    def limit(self, memory: int) -> None:
        """Raises `OSError`."""
        if self.version == 2:
            (self.path / "memory.max").write_text(str(memory))
            self._write("memory.swap.max", "0")
            self._write("memory.oom.group", "1")  # all of it or nothing: half a task waits for its other half
        else:
            (self.path / "memory.limit_in_bytes").write_text(str(memory))
            self._write("memory.memsw.limit_in_bytes", str(memory))

    def members(self) -> set[int]:
        with contextlib.suppress(OSError, ValueError):
            return set(map(int, (self.path / "cgroup.procs").read_text().split()))
        return set()

    def kill(self) -> None:
        """Send SIGKILL to all in it, at once where the kernel can."""
        if not self._write("cgroup.kill", "1"):
            for pid in self.members():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)

    def oom_kills(self) -> int:
        """How many of its processes the kernel has killed for its limit."""
        name = "memory.events" if self.version == 2 else "memory.oom_control"
        with contextlib.suppress(OSError, ValueError):
            lines = (line.split() for line in (self.path / name).read_text().splitlines())
            return int(dict(line for line in lines if len(line) == 2).get("oom_kill", 0))
        return 0

    def remove(self) -> bool:
        """`False`: something is still in it."""
        try:
            self.path.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    def _write(self, name: str, text: str) -> bool:
        path = self.path / name
        try:
            if path.exists():
                path.write_text(text)
                return True
        except OSError:
            pass  # the limit itself stands; or the caller has another way
        return False


class Hierarchy:
    """Where this process may make groups.

    Args:
        owner: in the names of its groups; nobody else on this machine makes groups with it.
        root, own: where the kernel shows groups, and those of this process.
    """

    def __init__(self, owner: str, root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> None:
        self._base, self._version = _usable(root, own)
        self._prefix = f"dtf-{owner}-"

    @property
    def confinement(self) -> str:
        """What holds attempts to their limits: `cgroup v2`, `cgroup v1` or `rlimit`."""
        return RLIMIT if self._base is None else f"cgroup v{self._version}"

    def make(self) -> Group | None:
        """A group for an attempt; `None` where there are none, or the kernel refuses."""
        if self._base is None:
            return None
        group = Group(self._base / f"{self._prefix}{uuid.uuid4().hex}", self._version)
        try:
            group.path.mkdir()
        except OSError:
            return None
        return group

    def left_behind(self) -> list[Group]:
        """Groups that an earlier owner of the name could not remove."""
        if self._base is None:
            return []
        return [Group(path, self._version) for path in sorted(self._base.glob(f"{self._prefix}*"))]


def _usable(root: Path, own: Path) -> tuple[Path | None, int]:
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return None, 0
    for number, names, path in lines:
        if number == "0" and not names:
            base = _inside(root, path)
            if _delegates(base) and _can_make_groups(base, 2):
                return base, 2
    for _, names, path in lines:
        if "memory" in names.split(","):
            base = _inside(root / "memory", path)
            if _can_make_groups(base, 1):
                return base, 1
    return None, 0


def _inside(root: Path, path: str) -> Path:
    """Our group; inside a container, it may be the root of what is shown."""
    base = root / path.lstrip("/")
    return base if (base / "cgroup.procs").exists() else root


def _delegates(base: Path) -> bool:
    """Whether groups in this one of version 2 can limit memory; makes it so where we may."""
    control = base / "cgroup.subtree_control"
    try:
        if "memory" in control.read_text().split():
            return True
        if "memory" not in (base / "cgroup.controllers").read_text().split():
            return False
        with contextlib.suppress(OSError):  # there are processes in it: ours may move, others not
            control.write_text("+memory")
            return "memory" in control.read_text().split()
        ours = {os.getpid(), os.getppid(), _parent(os.getppid())}  # keeper, guard, worker
        if not set(map(int, (base / "cgroup.procs").read_text().split())) <= ours:
            return False
        (base / LEAF).mkdir(exist_ok=True)
        for pid in ours:
            (base / LEAF / "cgroup.procs").write_text(str(pid))
        control.write_text("+memory")
        return "memory" in control.read_text().split()
    except (OSError, ValueError):
        return False


def _parent(pid: int) -> int:
    seen = family.status(pid)
    return os.getpid() if seen is None else seen[1]


def _can_make_groups(base: Path, version: int) -> bool:
    trial = Group(base / f"dtf-trial-{uuid.uuid4().hex}", version)
    try:
        trial.path.mkdir()
    except OSError:
        return False
    try:
        trial.limit(1 << 40)
        return True
    except OSError:
        return False
    finally:
        trial.remove()
