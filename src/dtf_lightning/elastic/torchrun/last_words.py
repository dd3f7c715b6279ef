"""The last words of torchrun when it ends by an exception: a sentence, in the place of the launcher's traceback.

The launcher's traceback names none of the user's code, is 15 to 30 lines long, and pushes the user's own error, which the
worker has printed, out of the terminal. It is kept for exceptions that are nobody's message: those are bugs.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousError

from dtf_lightning.errors import DtfError

_NO_MESSAGE = "<NONE>"
"""The text that torchelastic puts in the place of a message that a worker has not recorded."""


def install_last_words() -> None:
    """Let this process end with a sentence from now on, where `last_words` has one. Idempotent."""
    sys.excepthook = _say


def last_words(error: BaseException) -> str | None:
    """Return what to tell the user of the exception that ends torchrun; `None` for one that needs its traceback."""
    match error:
        case ChildFailedError():
            return "\n".join(_failed(failure) for failure in error.failures.values())
        case DtfError() | RendezvousError() | SignalException():
            return str(error)
        case _:
            return None


def _failed(failure: ProcessFailure) -> str:
    how = (
        f"ended with exit code {failure.exitcode}" if failure.exitcode >= 0 else f"was ended by {failure.signal_name()}"
    )
    said = _last_line(failure)
    return f"worker {failure.local_rank} of this node (pid {failure.pid}) {how}" + (
        f": {said}" if said else ". Its own error stands above"
    )


def _last_line(failure: ProcessFailure) -> str:
    """Return the end of the worker's error, where the script is decorated with torchelastic's `record`."""
    data: Any = failure.error_file_data
    message = data.get("message") if isinstance(data, dict) else None
    if message in (None, _NO_MESSAGE):
        return ""
    text = message.get("message", "") if isinstance(message, dict) else str(message)
    return next((line.strip() for line in reversed(str(text).splitlines()) if line.strip()), "")


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    said = last_words(error)
    if said is None:
        sys.__excepthook__(kind, error, trace)
        return
    for line in said.splitlines():
        sys.stderr.write(f"[dtf] {line}\n")
