"""`local`: workers as processes beside the coordinator that leads. They outlive it: the next leader finds them in the record."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from dtf_lightning import environment
from dtf_lightning.farm.scaling.provider import Provider, ProviderFailed, WorkersWanted
from dtf_lightning.whole_files import write_whole

PID = "pid"
NO_CUDA = "CUDA_VISIBLE_DEVICES"
"""Set to nothing: workers of one machine would share its accelerators."""


class LocalProvider(Provider):
    """Makes processes. `folder`: where the workers' folders lie."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: list[subprocess.Popen[bytes]] = []

    def start(self, wanted: WorkersWanted) -> None:
        """See `Provider`."""
        self._children = [child for child in self._children if child.poll() is None]
        place = self._folder / wanted.pool
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._tidy(place, keep=wanted.names)
            for name in wanted.names:
                if not _runs(place / name):
                    self._start(place / name, wanted.words(name))
        except OSError as error:
            raise ProviderFailed(f"no process can be started here: {error}") from error

    def _start(self, folder: Path, words: list[str]) -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        with (folder / "worker.log").open("ab") as log_file:
            child = subprocess.Popen(
                [sys.executable, "-m", "dtf_lightning", *words, "--folder", str(folder / "worker")],
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
                start_new_session=True,  # what ends the coordinator does not end what it has started
                env=environment.for_child({NO_CUDA: ""}, without_prefix=NO_CUDA),
            )
        self._children.append(child)
        write_whole(folder / PID, str(child.pid).encode())

    def _tidy(self, place: Path, keep: tuple[str, ...]) -> None:
        """Remove the folders of workers that have ended; the farm has what they had to tell, or has given them up."""
        for folder in place.iterdir():
            if folder.name not in keep and (folder / PID).exists() and not _runs(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _runs(folder: Path) -> bool:
    """Whether the worker of this folder runs. A process that has its number by now is told apart by its arguments."""
    try:
        pid = int((folder / PID).read_text())
        os.kill(pid, 0)
        arguments = Path(f"/proc/{pid}/cmdline")
        return not Path("/proc/self/cmdline").exists() or str(folder).encode() in arguments.read_bytes()
    except (OSError, ValueError):
        return False
