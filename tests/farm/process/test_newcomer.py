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

LOOK = """
import sys, urllib.request
from http.cookiejar import CookieJar
browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
link = next(word for word in sys.argv[1:] if "sign-in" in word and "://" in word)
browser.open(link)
with browser.open(link.partition("/sign-in")[0] + "/tasks") as answer:
    text = answer.read().decode()
    print("the page:", answer.status, "with the plan's tasks:", "sum[1000000]" in text)
"""


def test_readme_and_docs(tmp_path):
    """README's lines and plan, and the Python example of docs/farm.md. Only the port and the last look are a test's own."""
    lines = blocks("README.md", "sh", "## The farm")[0].splitlines()
    assert lines[:2] == ["pip install 'dtf-lightning[farm]'", "dtf farm up --detach"]
    project = tmp_path / "project"
    (project / "tests").mkdir(parents=True)
    (project / "tests" / "test_it.py").write_text("def test_it():\n    assert 6 * 7 == 42\n")
    (project / "plan.yaml").write_text(blocks("README.md", "yaml", "## The farm")[0])
    (project / "example.py").write_text(blocks("docs/farm.md", "python", "## From Python")[0])
    (project / "look.py").write_text(LOOK)
    script = [
        "set -e",
        "dtf farm up --detach --port 0",
        *lines[2:-1],
        f"{sys.executable} example.py",
        f"{sys.executable} look.py $(dtf farm sign-in)",
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
    assert any(line.startswith("1 passed in ") for line in out)
    table = [line.split() for line in done.stdout.partition("TASK ")[2].splitlines()[1:4]]
    assert [row[:2] for row in table] == [[name, "completed"] for name in ("unit", "sum[1000]", "sum[1000000]")]
    assert "farm farm: 1 workers, tasks: none" in out
    assert sorted(line for line in out if line.startswith("completed b")) == [
        f"completed b'{number**2}\\n'" for number in range(4)
    ]
    assert "the page: 200 with the plan's tasks: True" in out
    assert out[-1] == "farm ended"
