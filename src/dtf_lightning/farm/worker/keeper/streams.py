"""What an attempt prints goes through a pipe into its log, what it reads comes from a file through a pipe.

Rules that this file guards:

* an attempt that prints is never held up: not by a full disk, not by a log that is full, not by whoever reads the log;
* what an attempt's secrets are is not in the log.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterable
from pathlib import Path

from dtf_lightning.farm.worker.keeper.masking import Masker

PIPE_SIZE = 1 << 20
"""Bytes that an attempt may print while nobody looks; what the kernel gives everybody."""
PIECE = 1 << 18
PIECES_A_TURN = 8
"""So that attempts that print without end do not keep the others waiting."""


class Output:
    """The pipe from an attempt, and its log.

    Args:
        log: the file; what is there already stays.
        secrets: are masked.
        limit: bytes of the log; what comes after them is read, counted and dropped.
    """

    def __init__(self, log: Path, secrets: Iterable[str], limit: int) -> None:
        self._limit = limit
        self._masker = Masker(secrets)
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self.size = os.fstat(self._log).st_size
        """Bytes in the log."""
        self._num_dropped = 0
        self._trouble = ""
        self.reader, self._writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.reader, False)
        with contextlib.suppress(OSError):  # the user's pipes hold too much already: a smaller one does
            fcntl.fcntl(self.reader, fcntl.F_SETPIPE_SZ, PIPE_SIZE)

    @property
    def writer(self) -> int:
        """The end for the attempt."""
        return self._writer

    def started(self) -> None:
        """The attempt has its end now."""
        os.close(self._writer)
        self._writer = -1

    def pump(self, pieces: int = PIECES_A_TURN) -> bool:
        """Take what is in the pipe; `False`: nothing more will come."""
        for _ in range(pieces):
            try:
                data = os.read(self.reader, PIECE)
            except BlockingIOError:
                return True
            if not data:
                return False
            self._write(self._masker.add(data))
        return True

    def note(self, text: str) -> None:
        """Add a line of ours."""
        self._write(f"[dtf] {text}\n".encode(), always=True)

    def close(self) -> None:
        """Take what is left and end the log."""
        self.pump(2 * PIPE_SIZE // PIECE)
        self._write(self._masker.end())
        if self._num_dropped:
            self.note(f"{self._num_dropped} bytes of output were dropped: {self._trouble}")
        for file in (self.reader, self._writer, self._log):
            if file >= 0:
                os.close(file)

    def _write(self, data: bytes, *, always: bool = False) -> None:
        room = len(data) if always else max(0, self._limit - self.size)
        if room < len(data):
            self._drop(len(data) - room, f"the log may have {self._limit} bytes")
        rest = memoryview(data)[:room]
        while rest:
            try:
                written = os.write(self._log, rest)
            except OSError as error:  # the disk is full, or broken
                self._drop(len(rest), f"the log could not be written: {error.strerror}")
                return
            self.size += written
            rest = rest[written:]

    def _drop(self, number: int, trouble: str) -> None:
        self._num_dropped += number
        self._trouble = self._trouble or trouble


class Input:
    """The pipe to an attempt, and the file that holds what it is to read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = self._size = 0
        self._complete = False
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC)
        """`reader` is the end for the attempt; `writer` is -1 once it is closed."""
        os.set_blocking(self.writer, False)

    def started(self) -> None:
        """The attempt has its end now."""
        if self.reader >= 0:
            os.close(self.reader)
            self.reader = -1

    def feed(self, size: int, complete: bool) -> None:
        """The file is this long now."""
        self._size, self._complete = max(self._size, size), self._complete or complete
        self.pump()

    @property
    def wants_to_write(self) -> bool:
        return self.writer >= 0 and self._position < self._size

    def pump(self) -> None:
        """Write what fits into the pipe; close it behind the end."""
        try:
            while self.wants_to_write:
                with self._path.open("rb") as file:
                    file.seek(self._position)
                    data = file.read(min(PIECE, self._size - self._position))
                if not data:
                    break
                self._position += os.write(self.writer, data)
        except BlockingIOError:
            return
        except OSError:  # the attempt reads no more, or the file cannot be read
            self.close_writer()
        if self._complete and not self.wants_to_write:
            self.close_writer()

    def close_writer(self) -> None:
        if self.writer >= 0:
            os.close(self.writer)
            self.writer = -1

    def close(self) -> None:
        self.started()
        self.close_writer()
