"""A command line that runs until a test is through with it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

from support.farm.whole import DEADLINE


@contextlib.contextmanager
def running(line: str, say: str, **fields: Any) -> Iterator[str]:
    """A process that has said a line with these words, which is what one gets; SIGINT ends it."""
    with subprocess.Popen(line, shell=True, stdout=subprocess.PIPE, text=True, **fields) as process:
        try:
            told = process.stdout.readline()
            assert say in told
            yield told
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(DEADLINE)
