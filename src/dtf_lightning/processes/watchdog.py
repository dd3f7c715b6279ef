"""This program is an agent's watchdog: a process that ends the agent's workers if the agent was killed with -9.

Scripts without this package do not notice the agent's end, and torchelastic starts them without a parent-death signal,
so that after `kill -9` of torchrun they would go on training in a world that has changed. The agent holds the other end
of this process's standard input; if that closes without `GOODBYE`, every process that has the agent's mark in its
environment is killed.

It is started by path, not by module name: it imports only the standard library and starts in 20 ms.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

GOODBYE = b"."
"""Byte that the agent sends once it has ended its workers itself."""
LINGER, PAUSE = 0.5, 0.05
"""Seconds for which the watchdog goes on checking after the agent's end, and seconds between two checks: a worker that
was being started when the agent was killed gets its environment, and with it the mark, a little later."""


def marked(mark: bytes) -> Iterator[int]:
    """Yield the ids of processes whose environment contains `mark` (`NAME=value`), except this one."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid() and has_mark(int(entry.name), mark):
            yield int(entry.name)


def has_mark(pid: int, mark: bytes) -> bool:
    """Tell whether the process was started with `mark` in its environment; false if it has ended or is not readable."""
    try:
        return mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def end_marked(mark: bytes, linger: float = LINGER) -> int:
    """Send SIGKILL to all marked processes, those that they start meanwhile and those being started; return their number.

    `linger`: seconds for which it goes on checking.
    """
    ended: set[int] = set()
    until = time.monotonic() + linger
    while True:
        found = set(marked(mark)) - ended
        ended |= found
        for pid in found:
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                pass  # it has ended by itself
        if not found and time.monotonic() >= until:
            return len(ended)
        if not found:
            time.sleep(PAUSE)


def main(mark: bytes, linger: float) -> None:
    """Wait for the agent's end, and end its processes if it said no goodbye. Ignores Ctrl-C at the terminal."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    if os.read(0, 1) == GOODBYE:
        return
    num_ended = end_marked(mark, linger)
    if num_ended:
        message = f"[dtf] the agent (torchrun) is gone without a goodbye: ended {num_ended} of its processes\n"
        os.write(2, message.encode())


if __name__ == "__main__":
    main(os.fsencode(sys.argv[1]), float(sys.argv[2]))
