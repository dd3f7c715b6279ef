"""A headless Chromium, asked for a screenshot and for what a page says of itself."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr",
)  # fmt: skip
DEADLINE = 90.0


def browse(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it once with a fresh profile; skips the test where there is no Chromium."""
    if CHROMIUM is None:
        pytest.skip("no chromium on PATH")
    with tempfile.TemporaryDirectory(prefix="dtf-chromium-", ignore_cleanup_errors=True) as profile:
        return subprocess.run(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=8000", *arguments, url],
            capture_output=True, text=True, timeout=DEADLINE,
        )  # fmt: skip


def dom(path: Path) -> tuple[str, list[str]]:
    """The page after its scripts ran, and its errors on the console."""
    result = browse(path.as_uri(), "--dump-dom", "--window-size=1200,1000")
    return result.stdout, re.findall(r"CONSOLE[^\n]*(?:[Ee]rror|refused|Failed)[^\n]*", result.stderr)


def screenshot(path: Path, target: Path, *, width: int = 1200, height: int = 2400, fragment: str = "") -> Path:
    """A picture of the page."""
    browse(f"{path.as_uri()}{fragment}", f"--screenshot={target}", f"--window-size={width},{height}")
    return target
