"""What README and docs/farm.md say to type, typed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.farm.whole import DEADLINE
from support.pages import blocks

pytestmark = pytest.mark.process


def test_readme_and_docs(tmp_path):
    """README's five lines; in between the Python example of docs/farm.md. Only the port is a test's own."""
    lines = blocks("README.md", "sh", "## The farm")[0].splitlines()
    assert lines[:2] == ["pip install 'dtf-lightning[farm]'", "dtf farm up --detach"]
    project = tmp_path / "project"
    project.mkdir()
    (project / "example.py").write_text(blocks("docs/farm.md", "python", "## From Python")[0])
    script = [
        "set -e",
        "dtf farm up --detach --port 0",
        *lines[2:-1],
        f"{sys.executable} example.py",
        lines[-1],
    ]
    assert script[-1] == "dtf farm down"
    variables = {
        **os.environ,
        "DTF_FARM_HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        ["sh", "-c", "\n".join(script)],
        cwd=project,
        env=variables,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
    )
    subprocess.run(
        [sys.executable, "-m", "dtf_lightning", "farm", "down"], env=variables, capture_output=True, timeout=DEADLINE
    )
    assert done.returncode == 0, done.stderr
    out = done.stdout.splitlines()
    assert "42" in out
    assert "farm farm: 1 workers, tasks: none" in out
    assert sorted(line for line in out if line.startswith("completed b")) == [
        f"completed b'{number**2}\\n'" for number in range(4)
    ]
    assert out[-1] == "farm ended"
