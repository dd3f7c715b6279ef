"""Which programs a machine has that tasks may ask for: container engines, browsers, compilers, package managers."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

TIMEOUT = 10.0
"""Seconds for a program to say its version; one that does not has none."""
MAX_VERSION = 80
"""Characters."""


class Program(NamedTuple):
    """How a program is found and asked. It counts only if it answers: a docker without its daemon runs nothing."""

    names: tuple[str, ...]
    """Under which it may be installed, the usual one first."""
    ask: tuple[str, ...] = ("--version",)


PROGRAMS: Mapping[str, Program] = {
    "python": Program(("python3", "python")),
    "uv": Program(("uv",)),
    "git": Program(("git",)),
    "podman": Program(("podman",), ("info", "--format", "{{.Version.Version}}")),
    "docker": Program(("docker",), ("info", "--format", "{{.ServerVersion}}")),
    "node": Program(("node", "nodejs")),
    "gcc": Program(("gcc",)),
    "nvcc": Program(("nvcc",)),
    "chromium": Program(("chromium", "chromium-browser")),
    "chrome": Program(("google-chrome", "google-chrome-stable", "chrome")),
    "firefox": Program(("firefox",)),
    "edge": Program(("microsoft-edge", "microsoft-edge-stable")),
}
"""By the label that a worker carries for it."""
BROWSERS = ("chromium", "chrome", "firefox", "edge")


def find_software(path: str | None = None) -> dict[str, dict[str, str]]:
    """`path` and `version` of each program that is installed and answers, by its label.

    Args:
        path: folders to look in, as in `PATH`; `None`: those of this process.
    """
    with ThreadPoolExecutor(len(PROGRAMS), thread_name_prefix="farm-software") as pool:
        found = pool.map(lambda item: (item[0], _ask(item[1], path)), PROGRAMS.items())
        return {label: answer for label, answer in found if answer is not None}


def _ask(program: Program, path: str | None) -> dict[str, str] | None:
    where = next((found for name in program.names if (found := shutil.which(name, path=path))), None)
    if where is None:
        return None
    text = _answer([where, *program.ask])
    return None if text is None else {"path": where, "version": text}


def _answer(command: Sequence[str]) -> str | None:
    """The first line with a version in it, else the first that says anything."""
    try:
        done = subprocess.run(command, capture_output=True, timeout=TIMEOUT, check=False, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.strip() for line in done.stdout.decode(errors="replace").splitlines() if line.strip()]
    if done.returncode != 0 or not lines:
        return None
    return next((line for line in lines if version_number(line)), lines[0])[:MAX_VERSION]


def version_number(text: str) -> str:
    """The first thing that looks like a version: `Python 3.11.7` is `3.11.7`; "" without one."""
    match = re.search(r"\d+(?:\.\d+)+", text)
    return match.group() if match else ""
