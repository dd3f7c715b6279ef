"""A `Lifeline` shows other processes of this host that a thread has ended, in about a millisecond.

When a process is killed, Linux frees its memory before it closes its files: the end of file on its sockets comes the
later the more memory it holds (0.1 s for some hundred MB), and its pidfd tells even later. A robust mutex that one of
its threads holds is marked before that (`set_robust_list(2)`), and who waits for it is woken. The memory in which the
mutex lies is a file that is passed over a socket.

Rules that this file guards:

* a lifeline is an addition: where anything is missing (another libc, processor or system), there is none, and whoever
  has it needs another sign of the end, too;
* the thread that holds it keeps it to its own end, or lets go, which is no end;
* who watches waits in a thread of its own for the mutex's word, and never takes the mutex: so it can stop watching.

The word is read, which POSIX does not define: bits 0 to 29 are the holder's thread id, bit 30 says that it has died,
bit 31 that somebody waits (`futex(2)`, "robust futexes"). That the word is where glibc has it is looked at whenever a
lifeline is taken hold of.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import logging
import mmap
import os
import platform
import sys
import threading
import time

log = logging.getLogger(__name__)

LONGEST_WAIT = 60.0
"""Seconds of one wait for the word."""
JOIN_TIMEOUT = 30.0
"""Seconds that `close` waits for the thread to end, which takes microseconds."""

_SIZE = mmap.PAGESIZE
_THREAD, _DIED, _WAITERS = (1 << 30) - 1, 1 << 30, 1 << 31
_WAIT, _WAKE = 0, 1
_FUTEX = {"x86_64": 202, "aarch64": 98}.get(platform.machine()) if sys.platform == "linux" else None
"""The number of the system call."""
_SHARED = _ROBUST = 1
_ATTRIBUTE_BYTES = 64
"""More than any `pthread_mutexattr_t` has."""


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Memory:
    """A page that processes share: the mutex at its beginning, and its first word."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, _SIZE)  # with a copy of the descriptor
        self.word = ctypes.c_uint32.from_buffer(self._map)
        self.address = ctypes.c_void_p(ctypes.addressof(self.word))

    def close(self) -> None:
        del self.word  # a mapping that is referred to cannot be closed
        self._map.close()


class Lifeline:
    """Made by the thread that holds it, from here to `let_go` or its end.

    Raises `OSError` where there are no lifelines.
    """

    def __init__(self) -> None:
        if _FUTEX is None:
            raise OSError(errno.ENOSYS, f"lifelines are not known on {sys.platform}, {platform.machine()}")
        self.descriptor = os.memfd_create("dtf-lifeline", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        """Of the file, to be passed to those who watch."""
        try:
            os.ftruncate(self.descriptor, _SIZE)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
            self._libc = ctypes.CDLL(None)
            self._memory = _Memory(self.descriptor)
            self._hold()
        except BaseException:
            self.close_file()
            raise

    def _hold(self) -> None:
        attribute, memory, libc = ctypes.create_string_buffer(_ATTRIBUTE_BYTES), self._memory, self._libc
        for made in (
            libc.pthread_mutexattr_init(attribute),
            libc.pthread_mutexattr_setpshared(attribute, _SHARED),
            libc.pthread_mutexattr_setrobust(attribute, _ROBUST),
            libc.pthread_mutex_init(memory.address, attribute),
            libc.pthread_mutex_lock(memory.address),
        ):
            if made != 0:
                raise OSError(made, "a robust mutex in shared memory")
        if memory.word.value & _THREAD != threading.get_native_id():
            libc.pthread_mutex_unlock(memory.address)
            raise OSError(errno.ENOSYS, "the thread that holds a mutex is not in its first word")
        memory.word.value |= _WAITERS  # nobody else writes it while it is held, and the kernel wakes only then

    def close_file(self) -> None:
        """Close the file, once it is passed on; it is held as before. Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def let_go(self) -> None:
        """Let go, in the thread that holds it: those who watch see no end."""
        self.close_file()
        self._libc.pthread_mutex_unlock(self._memory.address)
        self._memory.close()


class LifelineWatch:
    """Watches the lifeline behind a descriptor, which stays open, in a thread. Can be read (`fileno`) once its holder has ended.

    Raises `OSError` or `ValueError` if the descriptor is none of a lifeline.
    """

    def __init__(self, descriptor: int) -> None:
        if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
            raise OSError(errno.EINVAL, "a lifeline's file cannot become shorter, and this one can")
        self._memory = _Memory(descriptor)
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._reader, self._writer = os.pipe()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="dtf-lifeline")
        self._thread.start()

    def fileno(self) -> int:
        return self._reader

    def close(self) -> None:
        """Stop watching. Idempotent."""
        if self._closing.is_set():
            return
        self._closing.set()
        deadline = time.monotonic() + JOIN_TIMEOUT
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._futex(_WAKE, 1)
            self._thread.join(0.001)  # it may have looked before, and begin to wait only now
        os.close(self._reader)
        os.close(self._writer)
        if not self._thread.is_alive():
            self._memory.close()

    def _watch(self) -> None:
        while not self._closing.is_set():
            word = self._memory.word.value
            if word & _DIED:
                with contextlib.suppress(OSError):
                    os.write(self._writer, b".")
                return
            if not word & _THREAD:
                return  # let go
            if self._futex(_WAIT, word, LONGEST_WAIT) not in (0, errno.EAGAIN, errno.EINTR, errno.ETIMEDOUT):
                log.debug("the kernel lets nobody wait for a lifeline")
                return

    def _futex(self, operation: int, value: int, seconds: float = 0.0) -> int:
        """Call the kernel; return the number of the error, or 0."""
        timeout = _Timespec(int(seconds), 0)
        failed = self._libc.syscall(
            ctypes.c_long(_FUTEX or 0),
            self._memory.address,
            ctypes.c_int(operation),
            ctypes.c_uint32(value),
            ctypes.byref(timeout),
            None,
            ctypes.c_int(0),
        )
        return ctypes.get_errno() if failed == -1 else 0
