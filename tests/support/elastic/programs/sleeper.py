"""A process whose main thread sleeps in a read, and is looked at meanwhile."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from dtf_lightning.clock import poll_until
from dtf_lightning.elastic.collectives import forgotten_waiter


def see_a_sleeping_main_thread(path: Path) -> None:
    """Write the file when another thread has seen this one sleep; ends by an error if it never does."""
    main = threading.get_ident()
    reader, writer = os.pipe()

    def look() -> None:
        try:
            poll_until(lambda: forgotten_waiter._look_at(main) is not None, 60.0, "the sleeping thread")
            path.touch()
        finally:
            os.close(writer)

    watch = threading.Thread(target=look)
    watch.start()
    os.read(reader, 1)
    watch.join()
