"""The keeper's program: `python -m dtf_lightning.farm.worker.keeper FOLDER SOCKET PATIENCE`.

SOCKET is the number of the descriptor that leads to the worker, which starts it; PATIENCE is in seconds.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import sys
from pathlib import Path

from dtf_lightning.clock import poll_until
from dtf_lightning.farm.worker.keeper import family
from dtf_lightning.farm.worker.keeper.keeper import Keeper
from dtf_lightning.farm.worker.keeper.messages import SOCKET

LOCK_TIMEOUT = 20.0
"""Seconds for an earlier keeper of this folder to end, which has nothing to do any more."""


def main(folder: Path, descriptor: int, patience: float) -> None:
    """Keep attempts until there is nothing to keep. Raises `TimeoutError` if another keeper does not end."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s")
    worker = socket.socket(fileno=descriptor)
    worker.set_inheritable(False)
    lock = os.open(folder / "keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    poll_until(lambda: _locked(lock), LOCK_TIMEOUT, f"the keeper before this one to leave {folder}")
    family.become_subreaper()
    # By way of a descriptor: a socket's path has 107 bytes at most.
    here = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    (folder / SOCKET).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{here}/{SOCKET}")
        listener.listen()
        listener.setblocking(False)
        Keeper(folder, worker, listener, patience=patience).run()
        (folder / SOCKET).unlink(missing_ok=True)


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
