"""Takes off the exception hook that torch lays around the last one whenever a process group is made.

Each of torch's hooks puts `[rankN]: ` in front of every line of a traceback. A run makes one group after the other in the
same process, so without this a traceback after 50 rescales would begin with 50 of them, most with a former rank.
"""

from __future__ import annotations

import inspect
import sys

_TORCHS = "init_process_group.<locals>._distributed_excepthook"


def remove_torch_excepthooks() -> None:
    """Put the hook back that was there before torch's; one that somebody has set since stays, with all below it."""
    while getattr(sys.excepthook, "__qualname__", "") == _TORCHS:
        sys.excepthook = inspect.getclosurevars(sys.excepthook).nonlocals["old_hook"]
