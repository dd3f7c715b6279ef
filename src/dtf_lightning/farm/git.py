"""`run_git`: git in a folder, which asks nobody anything and does not wait for ever."""

from __future__ import annotations

import subprocess
from pathlib import Path

PATIENCE = 120.0
"""Seconds for one command."""


def run_git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command of git; returns how it ended. Raises `OSError` where git is not installed, and `subprocess.TimeoutExpired`."""
    return subprocess.run(
        ["git", *arguments],
        cwd=folder,
        capture_output=True,
        timeout=PATIENCE,
        check=False,
        stdin=subprocess.DEVNULL,
    )
