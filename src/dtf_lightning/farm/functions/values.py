"""From a call's task that has ended to its value, or to what it raised.

Rule: a pickle is read only of a call that this client sent as a pickle, and only once the versions of Python are known to be
equal (`farm.calls.pickles`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError
from typing import Any

from dtf_lightning.errors import DtfError
from dtf_lightning.farm.calls.returned import EXCEPTION_PICKLE, VALUE_JSON, VALUE_PICKLE

Fetch = Callable[[str], bytes]
"""Returns the content of a file that the task has left, by its name, once its digest is checked."""


class TaskFailed(DtfError):
    """A call did not return, and there is no exception of its own to raise. The text says why.

    `task_id` is its task, `status` how that ended: "failed", "skipped" or "expired"; "completed" where it did not say what it
    returned.
    """

    def __init__(self, task_id: str, status: str, text: str) -> None:
        super().__init__(text)
        self.task_id = task_id
        self.status = status


def value_of(task: Mapping[str, Any], fetch: Fetch, *, is_pickled: bool) -> Any:
    """Return the value of a call whose task has ended.

    Args:
        task: as the API shows it.
        fetch: reads a file that it has left.
        is_pickled: whether it was sent as a pickle by this client, which may then read one.

    Raises what the call has raised, `CancelledError` if it was cancelled, `TaskFailed`, and what `fetch` raises.
    """
    task_id, status = str(task["task_id"]), str(task["status"])
    told = (task.get("results") or {}).get("returned") or {}
    reason = str(task.get("error") or (task.get("metadata") or {}).get("reason") or "no reason is known")
    if status == "cancelled":
        raise CancelledError(f"task {task_id}: {reason}")
    if status != "completed":
        if is_pickled and told.get("artifact") == EXCEPTION_PICKLE:
            _raise_own(task_id, status, reason, fetch)
        raise TaskFailed(task_id, status, f"task {task_id} ended as {status}: {reason}")
    if "value" in told:
        return told["value"]
    name = told.get("artifact")
    if name == VALUE_JSON:
        return json.loads(fetch(name))
    if name == VALUE_PICKLE and is_pickled:
        return _unpickled(fetch(name), f"the value of task {task_id}")
    if name == VALUE_PICKLE:
        why = "it returned a pickle, which is read of calls alone that this client sent as one"
    elif "results" not in task:
        why = "its result is kept no more"
    else:
        why = "it did not say what it returned: it is no call, or its process ended itself (sys.exit, os._exit)"
    raise TaskFailed(task_id, status, f"task {task_id} is completed, and there is no value of it: {why}")


def _raise_own(task_id: str, status: str, reason: str, fetch: Fetch) -> None:
    """Raise the exception that a call has left, with its traceback on the worker as the cause."""
    from dtf_lightning.farm.calls.pickles import RemoteTraceback

    try:
        error, text = _unpickled(fetch(EXCEPTION_PICKLE), f"the exception of task {task_id}")
    except (DtfError, TypeError, ValueError) as problem:
        raise TaskFailed(task_id, status, f"task {task_id} ended as {status}: {reason} ({problem})") from problem
    if not isinstance(error, Exception):
        raise TaskFailed(task_id, status, f"task {task_id} ended as {status}: {reason}")
    raise error from RemoteTraceback(text)


def _unpickled(data: bytes, what: str) -> Any:
    from dtf_lightning.farm.calls.pickles import unpickle  # needs cloudpickle, which only these calls do

    return unpickle(data, what)
