"""A repository with tests in a folder of a test, and pytest over it as a process, with `--farm` and without."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from dtf_lightning import environment
from support.farm.server import DEADLINE

PLUGIN = "dtf_lightning.farm.pytest_runs.plugin"


class Suite:
    """`url` and `token_file`: of the farm, which need not be there."""

    def __init__(self, folder: Path, url: str = "http://127.0.0.1:9", token_file: Path | None = None) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.write("pytest.ini", "[pytest]")
        self.write(".dtfignore", ".pytest_cache\n__pycache__\n*.xml")
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        self._variables = {
            **kept,
            environment.FARM_URL: url,
            environment.FARM_TOKEN_FILE: str(token_file or folder / "no-token"),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # what else is installed costs half a second a process
            "PYTHONPATH": str(folder),
        }

    def write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).strip() + "\n")

    @contextlib.contextmanager
    def begin(self, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
        """Is killed where the test has failed meanwhile."""
        words = [sys.executable, "-m", "pytest", "-p", PLUGIN, *arguments]
        with subprocess.Popen(
            words,
            cwd=self.folder,
            env={**self._variables, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def run(self, *arguments: str, **variables: str) -> tuple[int, str]:
        """Exit code and output."""
        with self.begin(*arguments, **variables) as process:
            out, _ = process.communicate(timeout=2 * DEADLINE)
            return process.returncode, out


def shown(output: str) -> str:
    """Output without what no two runs have in common: durations, and the farm's own line."""
    lines = [line for line in output.splitlines() if not line.startswith(("farm http", "rootdir:"))]
    return re.sub(r"=*( in [\d.]+s( \([\d:]+\))?) =*|( in [\d.]+s)", " in T", "\n".join(lines)).replace("=", "")


def cases(path: Path) -> list[tuple[str | None, ...]]:
    """Of JUnit XML: the counts, and of each test its names, how it ended, and what is said of that."""
    (suite,) = ET.parse(path).getroot()
    found = [tuple(suite.get(name) for name in ("tests", "errors", "failures", "skipped"))]
    for case in suite:
        parts = [(part.tag, part.get("message"), part.get("type"), part.text) for part in case]
        found.append((case.get("classname"), case.get("name"), *[text for part in parts for text in part]))
    return found
