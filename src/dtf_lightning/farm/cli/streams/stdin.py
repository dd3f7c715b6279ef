"""Sends what this program is given to read to a task, as if the command read it here."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import threading
from typing import TYPE_CHECKING

from dtf_lightning.errors import DtfError

if TYPE_CHECKING:
    from dtf_lightning.farm.client import Client

CHUNK = 64 * 1024
INPUT = 0
"""The file descriptor."""


def has_input(file: int = INPUT) -> bool:
    """Whether there is something to read: a pipe, a file, or a terminal that we have in the foreground."""
    try:
        status = os.fstat(file)
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == os.stat(os.devnull).st_rdev:
            return False
        return not os.isatty(file) or os.tcgetpgrp(file) == os.getpgrp()
    except OSError:  # it is closed
        return False


class InputSender:
    """Sends until the input's end (Ctrl-D), or `close`, in a thread of its own.

    Args:
        farm: gets a connection of that thread's own.
        task: reads it.
        file: descriptor.
    """

    def __init__(self, farm: Client, task: str, file: int = INPUT) -> None:
        self._farm = farm
        self._task = task
        self._file = file
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._run, name="dtf-farm-stdin", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End: what is not sent yet nobody reads."""
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)

    def _run(self) -> None:
        offset = 0
        try:
            while True:
                ready, _, _ = select.select([self._file, self._stop], [], [])
                if self._stop in ready:
                    return
                data = os.read(self._file, CHUNK)
                self._farm.send_stdin(self._task, offset, data, complete=not data)
                offset += len(data)
                if not data:
                    return
        except DtfError as error:
            # A task that has ended wants no more of it; any other must not wait for the rest.
            with contextlib.suppress(DtfError):
                self._farm.cancel(self._task, f"its standard input could not be sent: {error}")
        except OSError:
            return  # a terminal that has gone
        finally:
            self._farm.close()
