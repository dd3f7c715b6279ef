"""A script that says `pytorch_lightning` gets the same training as one that says `lightning`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[3]
SAME = ["elastic/lightning/test_same_as_plain.py", "elastic/lightning/run/test_rescale.py"]
CHOSEN = "test_planned or test_callbacks_and_loggers or test_datamodule"

pytestmark = pytest.mark.process


def test_the_same_tests_pass():
    """Rescales in one process, compared bit by bit with the plain Trainer: the tests of the other name, run for this one."""
    command = [sys.executable, "-m", "pytest", "-p", "support.old_name", "-q", "--no-header", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [*command, *SAME, "-k", CHOSEN],
        cwd=TESTS,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, result.stdout[-5000:]
    assert " passed" in result.stdout
