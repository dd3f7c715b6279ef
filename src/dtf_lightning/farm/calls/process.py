"""The process of a call: makes it, and leaves what it returned, or why it did not, where its worker looks.

    python -P -m dtf_lightning.farm.calls package.module:function '{"args": [1], "kwargs": {"by": 2}}'
    python -P -m dtf_lightning.farm.calls --pickled 17

It runs in the task's folder, whose modules can be imported. Exit codes: 0 it returned, 1 it raised or could not be called.
The traceback of what it raised goes to standard error, that is into the task's output. Without a worker's
`$DTF_FARM_RETURNED` what was returned is printed.

Rule: it imports little. This is the start of every call.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dtf_lightning import environment
from dtf_lightning.farm.calls.making import CannotCall, beyond_this_package, call_imported, short, told_of
from dtf_lightning.farm.calls.returned import MAX_ERROR, write_told
from dtf_lightning.farm.calls.spelling import PICKLED


def main(words: Sequence[str]) -> int:
    """Make the call that these words say; returns the exit code."""
    sys.path.insert(0, os.getcwd())
    try:
        if words[:1] == [PICKLED]:
            from dtf_lightning.farm.calls.pickles import call_pickled

            _tell(call_pickled(int(words[1]), _results_folder()))
        else:
            name, told = words
            arguments = json.loads(told)
            _tell(call_imported(name, arguments["args"], arguments["kwargs"], _results_folder()))
    except CannotCall as error:
        sys.stdout.flush()
        sys.stderr.write(f"dtf farm: {error}\n")
        _tell({"error": short(str(error), MAX_ERROR)})
        return 1
    except Exception as error:
        sys.stdout.flush()
        traceback.print_exception(error.with_traceback(beyond_this_package(error)))
        _tell({"error": told_of(error), **_kept(error, pickled=words[:1] == [PICKLED])})
        return 1
    return 0


def _kept(error: Exception, *, pickled: bool) -> dict[str, str]:
    """Leave the exception of a function that came by cloudpickle for the client that sent it."""
    results = _results_folder()
    if not pickled or results is None:
        return {}
    from dtf_lightning.farm.calls.pickles import keep_exception

    return keep_exception(error, results)


def _results_folder() -> Path | None:
    folder = environment.read(environment.FARM_RESULTS)
    return None if folder is None else Path(folder)


def _tell(told: Mapping[str, Any]) -> None:
    path = environment.read(environment.FARM_RETURNED)
    if path is not None:
        Path(path).write_text(write_told(told))
    elif "error" not in told:
        sys.stdout.write(f"{write_told(told)}\n")
