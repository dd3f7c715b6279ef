"""Destroys process groups that are no longer used in threads, because gloo takes 10 ms per member for it.

(`Loop::unregisterDescriptor` of gloo's TCP transport waits for its event thread, once for every connection.)

Rules that this file guards:

* whoever drops a group does not wait for its end, and holds no reference to it: the last one ends in the thread;
* `wait` waits for the threads, and the end of the interpreter does so too: a destructor of C++ that came back into an
  interpreter that is ending would abort the process. Both wait `PATIENCE` at most: a collective that gloo has forgotten
  (see `process_group.py`) keeps its group until the group's timeout;
* a fork waits for nothing: the child has no such thread, and never touches its copy of the group.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref

log = logging.getLogger(__name__)

PATIENCE = 10.0
"""Seconds; destroying a group of eight members takes 0.1."""

_all: weakref.WeakSet[DroppedGroups] = weakref.WeakSet()


class DroppedGroups:
    """Groups that are being destroyed. Used by one thread."""

    def __init__(self) -> None:
        self._threads: list[threading.Thread] = []
        _all.add(self)

    def destroy(self, groups: list[object]) -> None:
        """Empty the list, which must hold the last references to what is in it, in a thread."""
        thread = threading.Thread(target=groups.clear, daemon=True, name="dtf-group-destroyer")
        self._threads = [*(one for one in self._threads if one.is_alive()), thread]
        thread.start()

    def wait(self) -> None:
        """Wait for the end of all threads."""
        deadline = time.monotonic() + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        if self._threads:
            log.warning(
                "a process group of a former generation is still in use after %g s; it is left behind", PATIENCE
            )


def _wait_for_all() -> None:
    for dropped in list(_all):
        dropped.wait()


def _after_fork_in_child() -> None:
    for dropped in list(_all):
        dropped._threads.clear()


atexit.register(_wait_for_all)
os.register_at_fork(after_in_child=_after_fork_in_child)
