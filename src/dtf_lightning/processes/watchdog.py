"""The watchdog of one agent: a process that ends the agent's workers when the agent was killed with -9.

Stock scripts know nothing of us and torchelastic starts them without a parent-death signal, so `kill -9` of torchrun
would leave them training on a world that has moved on. The agent holds the other end of this process's standard input;
when that closes without a goodbye, every process that carries the agent's mark in its environment is killed.

Run by path, not by name: it imports the standard library only and starts in 20 ms.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

GOODBYE = b"."
"""The agent ended its workers itself."""
LINGER, PAUSE = 0.5, 0.05
"""Seconds after the agent's end in which it looks again, and between two looks: a worker that was being started when the
agent was killed gets its environment, and with it the mark, a little later."""


def marked(mark: bytes) -> Iterator[int]:
    """The processes whose environment holds `mark` (`NAME=value`)."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and has_mark(int(entry.name), mark):
            yield int(entry.name)


def has_mark(pid: int, mark: bytes) -> bool:
    """Whether the process was started with `mark` in its environment; False for one that is gone or not ours."""
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def end_marked(mark: bytes) -> int:
    """SIGKILL all of them, those that they start meanwhile, and those that were being started. Their number."""
    ended: set[int] = set()
    until = time.monotonic() + LINGER
    while True:
        found = set(marked(mark)) - ended
        ended |= found
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass  # gone by itself
        if not found and time.monotonic() >= until:
            return len(ended)
        if not found:
            time.sleep(PAUSE)


def main(mark: bytes) -> None:
    """Wait for the agent's end. Ctrl-C at the terminal is not for this process."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    if os.read(0, 1) == GOODBYE:
        return
    num_ended = end_marked(mark)
    if num_ended:
        message = f"[dtf] the agent (torchrun) is gone without a goodbye: ended {num_ended} of its processes\n"
        os.write(2, message.encode())


if __name__ == "__main__":
    main(os.fsencode(sys.argv[1]))
