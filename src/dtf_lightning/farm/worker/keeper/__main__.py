"""The keeper's program: `python -m dtf_lightning.farm.worker.keeper FOLDER SOCKET PATIENCE [rlimit]`, started by `guard.py`.

SOCKET is the number of the descriptor that leads to the worker, which starts it; PATIENCE is in seconds; with `rlimit` it
makes no cgroups.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import signal
import socket
import sys
from pathlib import Path

from dtf_lightning.clock import poll_until
from dtf_lightning.farm.worker.keeper import family
from dtf_lightning.farm.worker.keeper.cgroups import NOWHERE, RLIMIT, Group, Hierarchy
from dtf_lightning.farm.worker.keeper.course import KILL_PATIENCE
from dtf_lightning.farm.worker.keeper.keeper import Keeper
from dtf_lightning.farm.worker.keeper.messages import SOCKET

log = logging.getLogger(__name__)

LOCK_TIMEOUT = 20.0
"""Seconds for an earlier keeper of this folder to end, which has nothing to do any more."""


def main(folder: Path, descriptor: int, patience: float, *, use_cgroups: bool) -> None:
    """Keep attempts until there is nothing to keep. Raises `TimeoutError` if another keeper does not end."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    worker = socket.socket(fileno=descriptor)
    worker.set_inheritable(False)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # attempts inherit it
    family.end_with_parent()
    lock = os.open(folder / "keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    poll_until(lambda: _locked(lock), LOCK_TIMEOUT, f"the keeper before this one to leave {folder}")
    family.become_subreaper()
    owner = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    hierarchy = Hierarchy(owner) if use_cgroups else Hierarchy(owner, NOWHERE)
    _end_all_in(hierarchy)
    # By way of a descriptor: a socket's path has 107 bytes at most.
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    (folder / SOCKET).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{here}/{SOCKET}")
        listener.listen()
        listener.setblocking(False)
        Keeper(folder, worker, listener, patience=patience, hierarchy=hierarchy).run()
        (folder / SOCKET).unlink(missing_ok=True)


def _end_all_in(hierarchy: Hierarchy) -> None:
    """End what a keeper before this one has left, because it was killed."""
    for group in hierarchy.left_behind():

        def removed(group: Group = group) -> bool:
            group.kill()
            return group.remove()

        try:
            poll_until(removed, KILL_PATIENCE, f"the processes in {group.path} to end")
        except TimeoutError as error:
            log.warning("%s", error)


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(
        Path(sys.argv[1]),
        int(sys.argv[2]),
        float(sys.argv[3]),
        use_cgroups=sys.argv[4:] != [RLIMIT],
    )
