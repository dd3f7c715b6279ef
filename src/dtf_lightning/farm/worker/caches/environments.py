"""`UvEnvironments` makes Python environments from lock files with uv, and keeps them for the next task with the same lock.

Rules that this file guards:

* an environment is used only once it is complete, whatever became of the process that made it;
* one process makes an environment at a time, the others wait for it;
* two environments are the same only if lock, Python, platform and accelerator are.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dtf_lightning import environment
from dtf_lightning.clock import poll_until
from dtf_lightning.errors import DtfError
from dtf_lightning.farm.worker.caches.eviction import Entry, victims
from dtf_lightning.farm.worker.folders import remove_tree
from dtf_lightning.whole_files import write_whole

READY = "dtf-ready.json"
PROJECT_LOCK = "uv.lock"


class EnvironmentFailed(DtfError):
    """uv could not make an environment; the message has what it said."""


@dataclass(frozen=True)
class Environment:
    """A Python environment."""

    path: Path
    key: str

    def variables(self, base: Mapping[str, str]) -> dict[str, str]:
        """What a task that runs in it gets beside `base`."""
        search = os.pathsep.join(filter(None, [str(self.path / "bin"), base.get("PATH")]))
        return {"VIRTUAL_ENV": str(self.path), "PATH": search}


def environment_key(lock: bytes, *, python: str, machine: str, accelerator: str) -> str:
    """The name of the environment that these make: 32 hexadecimal digits."""
    parts = json.dumps([hashlib.sha256(lock).hexdigest(), python, machine, accelerator])
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


class UvEnvironments:
    """Thread-safe, also among processes.

    Args:
        folder: where environments lie.
        uv: the program.
        timeout: seconds for one call of uv, and for somebody else to make an environment that is wanted here too.
    """

    def __init__(self, folder: Path, *, uv: str = "uv", timeout: float = 1800.0) -> None:
        self._folder, self._uv, self._timeout = folder, uv, timeout
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def make(self, lock: Path, *, python: str, accelerator: str = "") -> Environment:
        """The environment for a lock file, made if it is not there.

        Args:
            lock: a project's `uv.lock`, beside its `pyproject.toml`, or a file of requirements with exact versions.
            python: version or path, as uv takes it.
            accelerator: which build of torch is wanted, as `UV_TORCH_BACKEND` names it (`cpu`, `cu128`); "": the lock's.

        Raises `EnvironmentFailed` if uv fails, `TimeoutError` if another process that makes it does not come to an end,
        and `OSError` if the lock cannot be read.
        """
        machine = f"{platform.system()}-{platform.machine()}"
        key = environment_key(lock.read_bytes(), python=python, machine=machine, accelerator=accelerator)
        found = Environment(self._folder / key, key)
        with self._alone(key):
            ready = found.path / READY
            if not ready.exists():
                remove_tree(found.path)  # of somebody who did not come to its end
                self._make(found.path, lock, python, accelerator)
                write_whole(ready, json.dumps({"python": python, "accelerator": accelerator}).encode())
            os.utime(ready)
        return found

    def trim(self, limit: int) -> list[str]:
        """Remove the least recently used environments until the others have `limit` bytes; call it while none is in use."""
        entries = [
            Entry(name=path.name, size=_size(path), used=(path / READY).stat().st_mtime)
            for path in self._folder.iterdir()
            if (path / READY).exists()
        ]
        removed = victims(entries, limit)
        for name in removed:
            with self._alone(name):
                remove_tree(self._folder / name)
        return removed

    def _make(self, path: Path, lock: Path, python: str, accelerator: str) -> None:
        variables = {"UV_TORCH_BACKEND": accelerator} if accelerator else {}
        self._call(["venv", "--python", python, str(path)], variables)
        if lock.name == PROJECT_LOCK:
            project = ["sync", "--frozen", "--no-install-project", "--project", str(lock.parent)]
            self._call(project, variables | {"UV_PROJECT_ENVIRONMENT": str(path)})
        else:
            self._call(["pip", "sync", "--python", str(path / "bin" / "python"), str(lock)], variables)

    def _call(self, arguments: list[str], variables: Mapping[str, str]) -> None:
        command = [self._uv, *arguments]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                check=False,
                timeout=self._timeout,
                stdin=subprocess.DEVNULL,
                env=environment.for_child(variables, without_prefix="VIRTUAL_ENV"),
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise EnvironmentFailed(f"{' '.join(command)}: {error}; is uv installed on this worker?") from error
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()[-2000:]
            raise EnvironmentFailed(f"{' '.join(command)} ended with exit code {done.returncode}: {said}")

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        file = os.open(self._folder / f".{key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            poll_until(lambda: _locked(file), self._timeout, f"another process that makes the environment {key}")
            yield
        finally:
            os.close(file)


def _locked(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _size(path: Path) -> int:
    return sum(Path(top, name).lstat().st_size for top, _, names in os.walk(path) for name in names)
