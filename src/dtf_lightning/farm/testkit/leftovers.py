"""What `/proc` tells of processes: who belongs to a folder, and which connections of a server are open (`proc(5)`)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

PROC = Path("/proc")
_ESTABLISHED, _LISTENS = "01", "0A"


def processes_of(folder: Path) -> dict[int, str]:
    """Return processes that have a folder in their command line or environment, by id, with their command lines.

    This process and those that have started it are none of them.
    """
    ours = _ancestors()
    found: dict[int, str] = {}
    for entry in PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) in ours:
            continue
        with contextlib.suppress(OSError):  # it has ended meanwhile, or is somebody else's
            command = (entry / "cmdline").read_bytes()
            told = command + b"\0" + (entry / "environ").read_bytes()
            if _state(entry) not in "ZX" and _lies_in(told, os.fsencode(folder)):
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


def open_connections(pid: int) -> int:
    """Return how many connections to the ports on which a process listens are open at its end."""
    inodes = set()
    for descriptor in (PROC / str(pid) / "fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(str(descriptor.readlink()).removeprefix("socket:[").removesuffix("]"))
    sockets = []
    for line in (PROC / str(pid) / "net" / "tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[9] in inodes:
            sockets.append((words[3], words[1]))  # state, local address
    listens = {address for state, address in sockets if state == _LISTENS}
    return sum(state == _ESTABLISHED and address in listens for state, address in sockets)


def _ancestors() -> set[int]:
    pid, found = os.getpid(), set()
    while pid:
        found.add(pid)
        pid = int(_after_the_name(PROC / str(pid))[1])
    return found


def _state(entry: Path) -> str:
    return _after_the_name(entry)[0]


def _after_the_name(entry: Path) -> list[str]:
    return (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()


def _lies_in(text: bytes, folder: bytes) -> bool:
    """Whether a text has this path, and not only as the beginning of another one: `w1` is not `w10`."""
    return any(not rest[:1].isalnum() for rest in text.split(folder)[1:])
