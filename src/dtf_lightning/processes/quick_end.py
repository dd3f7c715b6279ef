"""`end_quickly` spares a process that is about to end the time of taking all its objects apart.

When Python ends it looks for garbage among all objects and frees them one by one. For a process that has imported torch and
Lightning that is a second of CPU, in which its device belongs to nobody and the others on its cores wait.

Rules that this file guards:
- All that a program may count on at its end still happens: `finally`, `with`, `atexit`, `weakref.finalize`, its exit code.
- What was written to files and not flushed reaches them. Python does that by freeing the files, which does not happen any more.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import io


def end_quickly() -> None:
    """Let this process end without looking for garbage, whenever it ends. Idempotent.

    Objects that refer to each other in a circle are not freed: `__del__` is not called for them, which Python does not
    promise at a program's end either.
    """
    atexit.unregister(_leave_objects_alone)
    atexit.register(_leave_objects_alone)


def _leave_objects_alone() -> None:
    for found in gc.get_objects():
        if issubclass(type(found), (io.TextIOWrapper, io.BufferedWriter, io.BufferedRandom)):
            with contextlib.suppress(Exception):  # closed, or its disk is full: freeing it says nothing either
                found.flush()
    gc.freeze()
