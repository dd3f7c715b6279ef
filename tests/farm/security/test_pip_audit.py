"""`make pip-audit` says what is known of the installed packages, and fails where it could check none."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from support.source_tree import ROOT

UNKNOWN = {"name": "ours", "skip_reason": "Dependency not found on PyPI and could not be audited: ours (1)"}
GOOD = {"name": "good", "version": "1.0", "vulns": []}
BAD = {"name": "bad", "version": "2.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"], "description": "x"}]}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([GOOD, UNKNOWN], 0, "not checked: ours\n1 packages checked, 1 not; 0 known vulnerabilities\n"),
        ([GOOD, BAD], 1, "bad 2.0: PYSEC-1, mended in 2.1\n2 packages checked, 0 not; 1 known vulnerabilities\n"),
        ([UNKNOWN], 3, "pip-audit could check no package"),
        ([], 3, "pip-audit could check no package"),
        (None, 3, "pip-audit told no JSON, but 'no route'"),
    ],
)
def test_verdicts(packages, code, said):
    told = "no route" if packages is None else json.dumps({"dependencies": packages, "fixes": []})
    command = [sys.executable, ROOT / ".ci" / "pip_audit.py"]
    done = subprocess.run(command, input=told, capture_output=True, text=True, timeout=60)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
