"""`GitCache` brings the files of a commit, from repositories of which it keeps what was fetched before. Thread-safe."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
import threading
from pathlib import Path

from dtf_lightning import environment
from dtf_lightning.errors import DtfError
from dtf_lightning.farm.sources import unpack

TIMEOUT = 1800.0
"""Seconds for one call of git."""


class GitFailed(DtfError):
    """Git could not fetch a commit; the message has what it said."""


class GitCache:
    """One process uses a folder at a time. Each URL has a repository of its own in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()

    def bring(self, url: str, commit: str, target: Path) -> None:
        """Put the files of a commit into a folder, which is made. Raises `GitFailed`."""
        repository = self._folder / hashlib.sha256(url.encode()).hexdigest()[:32]
        with self._lock, tempfile.NamedTemporaryFile(suffix=".tar.gz") as archive:
            if not (repository / "HEAD").exists():
                repository.mkdir(mode=0o700, parents=True, exist_ok=True)
                _git(repository, "init", "--bare", "--quiet")
            if not _has(repository, commit):
                _git(repository, "fetch", "--quiet", "--depth", "1", "--no-tags", url, commit)
            os.utime(repository)
            _git(repository, "archive", "--format=tar.gz", f"--output={archive.name}", commit)
            target.mkdir(parents=True, exist_ok=True)
            unpack(Path(archive.name), target)


def _has(repository: Path, commit: str) -> bool:
    return _run(repository, "cat-file", "-e", f"{commit}^{{commit}}").returncode == 0


def _git(repository: Path, *arguments: str) -> None:
    done = _run(repository, *arguments)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()[-500:]
        raise GitFailed(f"git {' '.join(arguments)} ended with exit code {done.returncode}: {said}")


def _run(repository: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            ["git", "-c", "protocol.ext.allow=never", *arguments],
            cwd=repository,
            capture_output=True,
            check=False,
            timeout=TIMEOUT,
            stdin=subprocess.DEVNULL,
            env=environment.for_child({"GIT_DIR": ".", "GIT_TERMINAL_PROMPT": "0"}, without_prefix="GIT_WORK_TREE"),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GitFailed(f"git {' '.join(arguments)}: {error}; is git installed on this worker?") from error
