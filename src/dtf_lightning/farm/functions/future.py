"""`Future`: a call that runs on a farm, as users of `concurrent.futures` know it. `dtf_lightning.farm.Future`."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from dtf_lightning.errors import DtfError
from dtf_lightning.farm.functions.values import value_of
from dtf_lightning.farm.http import FarmRefused

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

ENDS = frozenset({"completed", "failed", "cancelled", "skipped", "expired"})
"""States in which a task has ended."""


class DoneAndNotDone(NamedTuple, Generic[R]):
    """What `wait` returns of futures."""

    done: set[Future[R]]
    not_done: set[Future[R]]


class FutureFarm(Protocol):
    """What a future asks of its client. Tasks are as the API shows them."""

    def show(self, task: str) -> Mapping[str, Any]:
        """Return a task as it is now."""
        ...

    def wait_for_end(self, task: str, timeout: float | None) -> Mapping[str, Any]:
        """Return a task when it has ended. Raises `TimeoutError`."""
        ...

    def cancel(self, task: str, reason: str = ...) -> str:
        """End a task: "cancelled", or "finished" if it had ended before."""
        ...

    def read_artifact(self, task: str, name: str) -> bytes:
        """Return the content of a file that a task has left."""
        ...


class Future(Generic[R_co]):
    """The value, to be, of a call. Thread-safe; made by `submit`, `map` and `call` of a client, which must stay open.

    Its methods raise what the client's do beside what their own texts say.
    """

    def __init__(self, farm: FutureFarm, task_id: str, name: str, *, is_pickled: bool) -> None:
        self.task_id = task_id
        """Of the task that is the call."""
        self.name = name
        """Of the function."""
        self._farm = farm
        self._is_pickled = is_pickled
        self._lock = threading.Lock()
        self._ended: Mapping[str, Any] | None = None
        self._known: tuple[Any, BaseException | None] | None = None

    def __repr__(self) -> str:
        told = "not known to have ended" if self._ended is None else self._ended["status"]
        return f"<Future of {self.name}, task {self.task_id}: {told}>"

    def __reduce__(self) -> Any:
        raise TypeError("a future cannot be sent: give its result() as the argument, or let the task come `after` it")

    def done(self) -> bool:
        """Whether the call has ended, however."""
        return self._status() in ENDS

    def running(self) -> bool:
        """Whether the call is being made now."""
        return self._status() == "running"

    def cancelled(self) -> bool:
        """Whether the call was cancelled."""
        return self._status() == "cancelled"

    def cancel(self) -> bool:
        """End the call, also where it runs; whether it is cancelled: `False` if it had ended before otherwise."""
        if self._ended is None:
            self._farm.cancel(self.task_id, "cancelled by its client")
            self.take(self._farm.wait_for_end(self.task_id, None))
        return self.cancelled()

    def result(self, timeout: float | None = None) -> R_co:
        """Return what the call returned.

        Raises what it raised (the cause is its traceback on the worker), `TaskFailed` for a call by name that raised and for
        one that did not return for another reason, `concurrent.futures.CancelledError`, and `TimeoutError` if it has not
        ended after `timeout` seconds.
        """
        value, error = self.outcome(timeout)
        if error is not None:
            raise error
        result: R_co = value
        return result

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what `result` would raise for the call's end; `None` if the call returned.

        Raises `concurrent.futures.CancelledError` and `TimeoutError` as `result`.
        """
        error = self.outcome(timeout)[1]
        if isinstance(error, CancelledError):
            raise error
        return error

    def failed(self) -> bool:
        """Whether the call has ended without returning."""
        return self._status() in ENDS - {"completed"}

    @property
    def ended(self) -> Mapping[str, Any] | None:
        """Its task as the API showed it at its end, once that is known here."""
        return self._ended

    def outcome(self, timeout: float | None = None) -> tuple[Any, BaseException | None]:
        """Return the value, or what `result` would raise for the call's end. Raises `TimeoutError`."""
        if self._ended is None:
            self.take(self._farm.wait_for_end(self.task_id, timeout))
        with self._lock:
            if self._known is None:
                self._known = self._read()
            return self._known

    def take(self, task: Mapping[str, Any]) -> None:
        """Take in how its task has ended, as the API shows it: nothing has to be asked any more."""
        self._ended = self._ended or task

    def _status(self) -> str:
        if self._ended is None:
            task = self._farm.show(self.task_id)
            if task["status"] not in ENDS:
                return str(task["status"])
            self.take(task)
        assert self._ended is not None
        return str(self._ended["status"])

    def _read(self) -> tuple[Any, BaseException | None]:
        """What a failure to reach the farm raises is no end of the call: it is raised, and asked for again."""
        assert self._ended is not None
        files: dict[str, bytes] = {}

        def fetch(name: str) -> bytes:
            if name not in files:
                raise DtfError(f"the file {name} of task {self.task_id} could not be stored, or is kept no more")
            return files[name]

        name = ((self._ended.get("results") or {}).get("returned") or {}).get("artifact")
        if name is not None:
            try:
                files[name] = self._farm.read_artifact(self.task_id, name)
            except FarmRefused as refusal:
                if refusal.status != 404:
                    raise
        try:
            return value_of(self._ended, fetch, is_pickled=self._is_pickled), None
        except Exception as error:
            return None, error
